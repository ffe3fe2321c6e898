"""Reading and checking data, a module a kind."""

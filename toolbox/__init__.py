"""Tools that reach outside: Python in the sandbox, search in a folder of one's own or by Tavily."""

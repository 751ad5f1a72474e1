"""A generalist Hanabi agent: it reads the table as text, and plays with any number of partners."""

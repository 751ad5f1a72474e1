"""Our own Game Boy game: CatchRT in C, its image catch.gb, and how that was built."""

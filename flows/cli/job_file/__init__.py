"""`ferry init` and `ferry schema`, which write job files and describe them."""

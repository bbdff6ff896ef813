"""The runs of a published table: which they are, and the processes that train them."""

"""A service: the model stays with its owner, the pictures with their customers.

They share a store and nothing else. `offers`, `places` and `queue` are for both; `owner` and
`publishing` are the owner's; `serving` and what it uses a sealed server's. The customer's side is
`jobs.client.offered`.
"""

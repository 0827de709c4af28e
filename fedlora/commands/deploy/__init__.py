"""Commands that rehearse a deployment, pack it for its sites, and look at a site."""

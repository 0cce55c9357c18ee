"""RecursiveMAS: frozen language models that collaborate in latent space."""

"""See what links do: gradients, fidelity, and what agents say in latents."""

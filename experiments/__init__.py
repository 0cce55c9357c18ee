"""What training adds, measured on the small systems."""

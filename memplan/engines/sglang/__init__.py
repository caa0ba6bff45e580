"""SGLang 0.3 to 0.5.23: its defaults by GPU size, what loading takes from the device, its pools, and the budget."""

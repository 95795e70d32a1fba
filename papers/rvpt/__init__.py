"""RVPT: defending backdoored CLIPs by repulsive visual prompt tuning (NeurIPS 2025, arXiv 2412.20392)."""

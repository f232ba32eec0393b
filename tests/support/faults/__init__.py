"""What the tests of faults share: killed programs, simulated disks, damage and its checks."""

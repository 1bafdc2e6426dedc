"""The methods that Avalanche lacks or gets wrong, one small file each."""

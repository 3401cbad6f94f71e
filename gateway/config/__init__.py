"""The configuration: its types, how it is read and checked, and what operators change while the gateway runs."""

"""The audit of a device: does what leaves it tell of a record before it is paid for?"""

"""What commands say of their results: one document model, its writers, and one style for every picture.

It imports torch and the standard library when it is imported; rich and matplotlib are imported where they are used.
"""

"""What is made of a finished trial: the merged model, the bundle, the model card, the hub.

Importing this package loads no torch: its modules do so inside their functions.
"""

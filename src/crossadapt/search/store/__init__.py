"""Engines that hold collections: the protocol, and LanceDB."""

"""GrootV in other libraries, a module for each; nothing is imported before it is asked for."""

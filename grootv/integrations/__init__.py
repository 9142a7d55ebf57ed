"""GrootV in other libraries, a module for each; none of them imports its library before it is asked for."""

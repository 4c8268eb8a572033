# Nothing of it is called by name.

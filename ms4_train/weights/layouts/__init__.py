"""The public layouts of this model: what is stored under which name, and what the configuration files say."""

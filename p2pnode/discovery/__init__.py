"""Where peers can be found: each module is one kind of source behind `ports.Source`."""

"""Networks as plain programs: backend, parameter tree, frozen config, arrays in; arrays out."""

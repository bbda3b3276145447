//! The configuration file, its defaults, its checks, its secrets.

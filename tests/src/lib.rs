//! Boots real guests and holds the harness by which tests drive them.

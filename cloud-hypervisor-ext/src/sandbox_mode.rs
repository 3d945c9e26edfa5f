//! The mode of a port's sandbox, which the port itself builds.

use std::fmt;

use crate::options::{OptionError, Options};

/// Its values.
const MODES: [&str; 4] = ["off", "log", "on", "strict"];

/// The mode that the user gives, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxMode(&'static str);

impl SandboxMode {
    pub(crate) fn parse(options: &Options) -> Result<Option<SandboxMode>, OptionError> {
        let Some(text) = options.get("sandbox") else {
            return Ok(None);
        };
        let mode = MODES.into_iter().find(|mode| *mode == text);
        let mode = mode.map(SandboxMode).ok_or_else(|| {
            let modes = MODES.join(", ");
            OptionError::Value(format!("sandbox={text} is not one of {modes}"))
        });
        mode.map(Some)
    }
}

impl fmt::Display for SandboxMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

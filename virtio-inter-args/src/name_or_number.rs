//! The number of a user or group, from its name or from the number itself.

/// The number for chown(2), which need be nobody's. `by_name` is what the system knows of `text`.
///
/// # Errors
///
/// The system cannot be asked, or `text` is neither.
pub(crate) fn number(
    kind: &str,
    text: &str,
    by_name: nix::Result<Option<u32>>,
) -> Result<u32, String> {
    // Somebody may have a number for a name.
    match by_name {
        Ok(Some(number)) => return Ok(number),
        Ok(None) => {}
        Err(error) => return Err(format!("the {kind} cannot be looked up: {error}")),
    }
    match text.parse::<u32>() {
        // The last number means "no change" to chown(2).
        Ok(number) if number != u32::MAX => Ok(number),
        _ => Err(format!("there is no such {kind}")),
    }
}

//! What a thread does, as far as its process wants to know: it restricts threads by it.

use std::sync::OnceLock;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It moves frames.
    Worker,
    /// It does something small that may block, for the control thread.
    Helper,
}

static HOOK: OnceLock<fn(Role)> = OnceLock::new();

/// Has `hook` called in each thread that [enters](enter) a role from now on. The first call counts.
pub fn on_start(hook: fn(Role)) {
    let _ = HOOK.set(hook);
}

/// To be called in a thread once it has opened what it needs.
pub fn enter(role: Role) {
    if let Some(hook) = HOOK.get() {
        hook(role);
    }
}

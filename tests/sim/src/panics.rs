//! Assertions of the production code that do not hold: what they say, and where they stand.
//!
//! Always true: a panic within [`caught`] is told to the caller and to nobody else; any other goes the way it went before.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static LISTENS: Cell<bool> = const { Cell::new(false) };
    static HEARD: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Once for the process: the hook belongs to all threads, and what it hears to each of its own.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !LISTENS.get() {
                return before(info);
            }
            let text = info.payload_as_str().unwrap_or("an assertion without words");
            let place = info.location().map_or(String::new(), |at| format!(" ({}:{})", at.file(), at.line()));
            HEARD.replace(format!("{text}{place}"));
        }));
    });
}

/// Does some work. If it panics: the words of the assertion and its place.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    listen();
    let outer = LISTENS.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    LISTENS.set(outer);
    result.map_err(|_| HEARD.take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assertion_is_told_with_its_place() {
        let text = caught(|| assert!(std::hint::black_box(false), "I19: {}", 7)).expect_err("it does not hold");
        assert!(text.starts_with("I19: 7 (tests/sim/src/panics.rs:"), "{text}");
        assert_eq!(caught(|| 7), Ok(7));
        let text = caught(|| std::hint::black_box(0_u64) - std::hint::black_box(1));
        assert!(text.expect_err("it overflows").contains("overflow (tests/sim/src/panics.rs:"));
    }
}

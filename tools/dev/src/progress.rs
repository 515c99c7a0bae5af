//! What the user sees while the system comes up.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps with a spinner on a terminal, lines elsewhere.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// With the number of steps to come.
    pub fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        let style = ProgressStyle::with_template("{spinner} [{pos}/{len}] {msg}  {elapsed} ");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, started: Instant::now() }
    }

    /// The next step begins.
    pub fn step(&self, what: impl Into<String>) {
        let what = what.into();
        self.bar.inc(1);
        if self.bar.is_hidden() {
            eprintln!("[{:>3}/{}] {what}", self.bar.position(), self.bar.length().unwrap_or(0));
        }
        self.bar.set_message(what);
    }

    /// Seconds since the start.
    pub fn finish(self) -> f64 {
        self.bar.finish_and_clear();
        self.started.elapsed().as_secs_f64()
    }
}

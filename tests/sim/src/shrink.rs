//! From a failing seed to its shortest form: faults are left out, many at a time and then one by one, as long as the run
//! still fails in the same way. Each fault draws from a source of its own, so leaving one out does not change the others.

use std::collections::BTreeSet;

use crate::run::{Options, Outcome, run};

/// What is left of a failing seed.
#[derive(Debug)]
pub struct Shrunk {
    /// Faults that need not happen, by their number.
    pub skip: BTreeSet<u64>,
    /// How many are left.
    pub kept: usize,
    /// How it fails then.
    pub failure: String,
    /// Runs that were needed.
    pub runs: u64,
}

/// What kind of failure it is: its text up to the first detail.
fn kind(failure: &str) -> String {
    let text = failure.strip_prefix("at ").and_then(|rest| rest.split_once(": ")).map_or(failure, |(_, text)| text);
    let names_one = text.starts_with('I') || text.starts_with("panic: I");
    text.chars().take_while(|c| !c.is_ascii_digit() || names_one).take(16).collect()
}

/// Shrinks a seed; `None` if it does not fail.
pub fn shrink(seed: u64) -> Option<Shrunk> {
    let first = run(seed, &Options::default());
    let wanted = kind(first.failure.as_ref()?);
    let count = first.fault_count;
    let mut runs = 1;
    let mut fails = |skip: &BTreeSet<u64>| -> Option<Outcome> {
        runs += 1;
        let outcome = run(seed, &Options { skip: skip.clone(), prints: false });
        outcome.failure.as_ref().is_some_and(|text| kind(text) == wanted).then_some(outcome)
    };
    let mut skip = BTreeSet::new();
    let mut last = first;
    let mut size = count.max(1);
    loop {
        let mut at = 0;
        while at < count {
            let part: Vec<u64> = (at..(at + size).min(count)).filter(|fault| !skip.contains(fault)).collect();
            at += size;
            if part.is_empty() {
                continue;
            }
            let mut more = skip.clone();
            more.extend(part);
            if let Some(outcome) = fails(&more) {
                (skip, last) = (more, outcome);
            }
        }
        if size == 1 {
            break;
        }
        size = size.div_ceil(2);
    }
    let kept = count as usize - skip.len();
    Some(Shrunk { skip, kept, failure: last.failure.unwrap_or_default(), runs })
}

/// Numbers as they are written on the command line: `0-4,7`.
pub fn ranges(numbers: &BTreeSet<u64>) -> String {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let text = |(start, end): &(u64, u64)| if start == end { start.to_string() } else { format!("{start}-{end}") };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Reads what [`ranges`] wrote.
pub fn parse_ranges(text: &str) -> Result<BTreeSet<u64>, String> {
    let wrong = || format!("'{text}' is no list of numbers: write 0-4,7");
    let mut numbers = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (start, end) = part.split_once('-').unwrap_or((part, part));
        let (start, end): (u64, u64) = (start.parse().map_err(|_| wrong())?, end.parse().map_err(|_| wrong())?);
        if end < start || end - start > 100_000 {
            return Err(wrong());
        }
        numbers.extend(start..=end);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_faults_are_read_as_they_are_written() {
        let numbers: BTreeSet<u64> = [0, 1, 2, 7, 9, 10].into();
        assert_eq!(ranges(&numbers), "0-2,7,9-10");
        assert_eq!(parse_ranges("0-2,7,9-10"), Ok(numbers));
        assert_eq!(parse_ranges(""), Ok(BTreeSet::new()));
        assert!(parse_ranges("3-1").is_err() && parse_ranges("x").is_err());
    }

    #[test]
    fn failures_of_one_kind_are_told_from_others() {
        assert_eq!(kind("at 12.3: liveness: redundancy did"), kind("at 95.1: liveness: redundancy is"));
        assert_ne!(kind("at 12.3: liveness: x"), kind("at 12.3: I13: y"));
    }
}

//! Is a history of one register with unique values linearizable? The zones of Gibbons and Korach: all operations on one
//! value form a zone; forward zones must not overlap, and no backward zone may lie inside a forward one.

use std::collections::BTreeMap;

#[derive(Default)]
pub struct Register {
    /// value -> (invoked, answered; none: outcome unknown)
    writes: BTreeMap<u64, (u64, Option<u64>)>,
    reads: Vec<(u64, u64, u64)>,
}

impl Register {
    pub fn write_begins(&mut self, value: u64, at: u64) {
        self.writes.insert(value, (at, None));
    }

    pub fn write_ends(&mut self, value: u64, at: u64) {
        self.writes.get_mut(&value).unwrap().1 = Some(at);
    }

    pub fn read(&mut self, value: u64, began: u64, ended: u64) {
        self.reads.push((value, began, ended));
    }

    pub fn check(&self) -> Result<(), String> {
        // value -> (earliest end, latest start)
        let mut zones: BTreeMap<u64, (u64, u64)> = BTreeMap::from([(0, (0, 0))]);
        for (value, (began, ended)) in &self.writes {
            zones.insert(*value, (ended.unwrap_or(u64::MAX), *began));
        }
        let mut seen: BTreeMap<u64, bool> = BTreeMap::new();
        for (value, began, ended) in &self.reads {
            let Some(zone) = zones.get_mut(value) else { return Err(format!("read {value}, which nobody wrote")) };
            if self.writes.get(value).is_some_and(|(write, _)| write > ended) {
                return Err(format!("read {value} before it was written"));
            }
            *zone = (zone.0.min(*ended), zone.1.max(*began));
            seen.insert(*value, true);
        }
        let open = |value: &u64| self.writes.get(value).is_some_and(|(_, ended)| ended.is_none());
        let zones: Vec<(u64, u64, u64)> = zones
            .into_iter()
            .filter(|(value, _)| !open(value) || seen.contains_key(value))
            .map(|(value, (end, start))| (value, end, start))
            .collect();
        for (value, end, start) in &zones {
            if end >= start {
                continue;
            }
            for (other, other_end, other_start) in &zones {
                if other == value {
                    continue;
                }
                let forward = other_end < other_start;
                let clash = if forward {
                    end < other_start && other_end < start
                } else {
                    end < other_start && other_end < start && other_start <= other_end
                };
                if clash {
                    return Err(format!(
                        "value {value} ({end}..{start}) and value {other} ({other_end}..{other_start}) have no order"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn the_checker_finds_stale_reads_and_lost_writes() {
    let mut register = Register::default();
    register.write_begins(1, 1);
    register.write_ends(1, 2);
    register.write_begins(2, 3);
    register.write_ends(2, 4);
    register.read(2, 5, 6);
    assert!(register.check().is_ok());
    register.read(1, 7, 8);
    assert!(register.check().is_err());
    let mut lost = Register::default();
    lost.write_begins(1, 1);
    lost.write_ends(1, 2);
    lost.read(0, 3, 4);
    assert!(lost.check().is_err());
    let mut unknown = Register::default();
    unknown.write_begins(1, 1);
    unknown.read(0, 3, 4);
    unknown.read(1, 5, 6);
    assert!(unknown.check().is_ok());
    unknown.read(0, 7, 8);
    assert!(unknown.check().is_err());
}

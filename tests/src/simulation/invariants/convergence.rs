//! Replicas that have applied the same entries hold the same rows (state machine replication, Schneider,
//! ACM Computing Surveys 1990): compared byte by byte when the healed cluster has been stopped. One that
//! stopped before the others may lack what these still did; none lacks more.

use std::collections::BTreeMap;

use perennial::replica::Disk;

/// First byte of a checkpoint's key; a row's has another one.
const CHECKPOINT: u8 = 0;
/// Entries that may be appended while nodes stop one after the other.
const LAG_MAX: u64 = 64;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows and checkpoint of each group, without the group in their keys.
fn by_group(disk: &Disk) -> BTreeMap<[u8; 8], Rows> {
    let mut groups: BTreeMap<_, Rows> = BTreeMap::new();
    for (mut key, value) in disk.rows() {
        let Some((_, group)) =
            key.split_first().and_then(|(tag, rest)| Some((tag, *rest.first_chunk::<8>()?)))
        else {
            continue;
        };
        key.drain(1..9);
        groups.entry(group).or_default().insert(key, value);
    }
    groups
}

/// Where a checkpoint stands: behind its version, eight bytes of the applied index.
fn applied(rows: &Rows) -> Option<u64> {
    let (_, rest) = rows.get([CHECKPOINT].as_slice())?.split_first()?;
    rest.first_chunk().map(|index| u64::from_be_bytes(*index))
}

/// Compares the disks of nodes that were stopped in good order; gives how many pairs of replicas were
/// compared row by row.
pub fn replicas_agree<'a>(disks: impl IntoIterator<Item = (&'a str, &'a Disk)>) -> Result<u64, String> {
    let mut compared = 0;
    let mut known: BTreeMap<[u8; 8], Vec<(&str, Rows)>> = BTreeMap::new();
    for (node, disk) in disks {
        for (group, rows) in by_group(disk) {
            let others = known.entry(group).or_default();
            for (other, theirs) in others.iter() {
                let same = compare((other, theirs), (node, &rows));
                compared += u64::from(same.map_err(|why| format!("group {group:?}: {why}"))?);
            }
            others.push((node, rows));
        }
    }
    Ok(compared)
}

/// Whether the two could be compared, and then were the same.
fn compare((a, a_rows): (&str, &Rows), (b, b_rows): (&str, &Rows)) -> Result<bool, String> {
    let (Some(at_a), Some(at_b)) = (applied(a_rows), applied(b_rows)) else {
        return Err(format!("{a} or {b} has rows and no checkpoint"));
    };
    if at_a.abs_diff(at_b) > LAG_MAX {
        return Err(format!("{a} stands at {at_a}, {b} at {at_b}"));
    }
    if at_a != at_b {
        return Ok(false);
    }
    let keys = a_rows.keys().chain(b_rows.keys());
    match keys.into_iter().find(|key| a_rows.get(*key) != b_rows.get(*key)) {
        None => Ok(true),
        Some(key) => Err(format!(
            "{a} and {b} stand at {at_a} and differ in row {key:02x?}: {:02x?} and {:02x?}",
            a_rows.get(key),
            b_rows.get(key)
        )),
    }
}

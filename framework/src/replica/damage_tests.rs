//! Bits flipped and files cut short at every offset of small logs and row stores. Whatever the disk does to
//! one file: what is read back is what was flushed, or it is not read back at all.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use perennial_core::hash::wide_hash;
use perennial_core::id::{GroupId, LogIndex, MemberId, PartitionId, Term};
use perennial_core::replication::{Entry, HardState, Persist, RowOp, Truncate};

use super::damage::FILE_HEAD_BYTES;
use super::files::{Ends, LogFile, Queue, decode, encode};
use super::log::DiskLog;
use super::row_files::Notes;
use super::{FjallRows, GroupConfig, GroupMeta, LogError, MemoryRows, RowError, RowStore};

/// A folder as it was, file by file.
type Image = BTreeMap<PathBuf, Vec<u8>>;

/// A folder that is opened thousands of times: in memory, where there is such a place.
fn fast_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn read_image(dir: &Path) -> Image {
    let mut image = Image::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                image.insert(path.strip_prefix(dir).unwrap().to_owned(), bytes);
            }
        }
    }
    image
}

fn write_image(dir: &Path, image: &Image) {
    for (name, bytes) in image {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// One bit of this byte is the other one.
    Flip(usize),
    /// The file ends here.
    Cut(usize),
    /// From here on it is zeros.
    Zero(usize),
    Gone,
}

impl Damage {
    fn of(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut damaged = bytes.to_vec();
        match self {
            Self::Flip(at) => damaged[at] ^= 1 << (at % 8),
            Self::Cut(at) => damaged.truncate(at),
            Self::Zero(at) => damaged[at..].fill(0),
            Self::Gone => return None,
        }
        Some(damaged)
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Flip(_) => "flip",
            Self::Cut(_) => "cut",
            Self::Zero(_) => "zeros",
            Self::Gone => "gone",
        }
    }

    /// All kinds at every `step`th offset.
    fn all(bytes: &[u8], step: usize) -> impl Iterator<Item = Self> {
        let at = (0..bytes.len()).filter(move |at| at.is_multiple_of(step));
        at.flat_map(|at| [Self::Flip(at), Self::Cut(at), Self::Zero(at)]).chain([Self::Gone])
    }
}

/// Damages each file of an image in every way; counts outcomes by file and kind of damage.
fn sweep(
    image: &Image,
    step: impl Fn(usize) -> usize,
    outcome: impl Fn(&Path, &Path, Damage) -> &'static str,
) -> BTreeMap<(String, &'static str), BTreeMap<&'static str, usize>> {
    let mut table: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for (name, bytes) in image {
        for damage in Damage::all(bytes, step(bytes.len())) {
            let damaged = damage.of(bytes);
            if damaged.as_ref() == Some(bytes) {
                continue;
            }
            let dir = fast_dir();
            let mut image = image.clone();
            match damaged {
                Some(damaged) => image.insert(name.clone(), damaged),
                None => image.remove(name),
            };
            write_image(dir.path(), &image);
            let outcome = outcome(dir.path(), name, damage);
            if matches!(outcome, "DIFFERENT" | "panic") {
                println!("{outcome}: {} {damage:?}", name.display());
            }
            let counts = table.entry((name.display().to_string(), damage.kind())).or_default();
            *counts.entry(outcome).or_insert(0) += 1;
        }
    }
    for ((name, kind), counts) in &table {
        println!("{name:40} {kind:6} {counts:?}");
    }
    table
}

// ---- the log -------------------------------------------------------------------------------------

const LOG_FILE_BYTES: u64 = 1200;

fn g(n: u32) -> GroupId {
    GroupId::of(PartitionId(n))
}

fn config(group: GroupId) -> GroupConfig {
    GroupConfig { group, voters: vec![MemberId(1), MemberId(2)], preferred: vec![MemberId(2), MemberId(1)] }
}

fn open_log(dir: &Path) -> Result<DiskLog, LogError> {
    DiskLog::open(dir, LOG_FILE_BYTES, LOG_FILE_BYTES)
}

fn persist(group: GroupId, from: u64, count: u64, term: u64) -> Persist {
    let entry = |index| Entry { index, term, data: vec![index as u8; 20].into(), ..Entry::default() };
    Persist {
        group,
        reset: None,
        hard_state: HardState { term, vote: 1 + from % 2, commit: from - 1 },
        entries: (from..from + count).map(entry).collect(),
    }
}

/// Everything a log gives back.
fn state(log: &DiskLog) -> Result<String, LogError> {
    let groups = log.recover()?;
    Ok(format!("{:?}", groups.iter().map(|found| (&found.config, &found.seed)).collect::<Vec<_>>()))
}

/// A log as a kill leaves it, and what it gives back.
struct Written {
    image: Image,
    state: String,
    /// The same before the last batch was written.
    before: (Image, String),
}

impl Written {
    /// The file with the last batch, and where that is in it.
    fn last_batch(&self) -> (PathBuf, std::ops::Range<usize>) {
        let log = |name: &&PathBuf| name.extension().is_some_and(|suffix| suffix == "raftlog");
        let last = self.image.keys().rfind(log).unwrap();
        let end = |image: &Image| image[last].iter().rposition(|byte| *byte != 0).unwrap() + 1;
        (last.clone(), end(&self.before.0)..end(&self.image))
    }
}

/// Several groups, one of which is idle and lives in the rewrite queue; two files and more of the append
/// queue.
fn written() -> Written {
    let dir = fast_dir();
    let mut log = open_log(dir.path()).unwrap();
    for n in 0..3 {
        log.note(&config(g(n))).unwrap();
    }
    log.write(&[persist(g(2), 1, 2, 3)], |_| None).unwrap();
    for from in (1..40).step_by(2) {
        log.write(&[persist(g(0), from, 2, 1), persist(g(1), from, 2, 2)], |_| None).unwrap();
    }
    let truncate = |n, index| Truncate { group: g(n), index: LogIndex(index), term: Term(u64::from(n) + 1) };
    log.truncate(&[truncate(0, 38), truncate(1, 36)]).unwrap();
    log.purger().purge().unwrap();
    for from in (41..56).step_by(2) {
        log.write(&[persist(g(0), from, 2, 1), persist(g(1), from, 2, 4)], |_| None).unwrap();
    }
    let before = (read_image(dir.path()), state(&log).unwrap());
    log.write(&[persist(g(0), 57, 2, 5), persist(g(1), 55, 1, 5)], |_| None).unwrap();
    let state = state(&log).unwrap();
    let image = read_image(dir.path());
    let files = |suffix: &str| image.keys().filter(|name| name.to_string_lossy().ends_with(suffix)).count();
    assert!(files("raftlog") > 1 && files("rewrite") > 0, "{:?}", image.keys());
    Written { image, state, before }
}

/// What a damaged log does.
fn log_outcome(dir: &Path, written: &Written) -> &'static str {
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| open_log(dir).and_then(|log| state(&log))));
    match opened {
        Ok(Ok(found)) if found == written.state => "same",
        Ok(Ok(found)) if found == written.before.1 => "last batch cut",
        Ok(Ok(_)) => "DIFFERENT",
        Ok(Err(_)) => "refused",
        Err(_) => "panic",
    }
}

#[test]
fn a_damaged_log_gives_back_what_was_flushed_or_nothing() {
    let written = written();
    let table = sweep(&written.image, |_| 1, |dir, _, _| log_outcome(dir, &written));
    for ((name, kind), outcomes) in table {
        let bad = outcomes.keys().find(|outcome| !matches!(**outcome, "same" | "refused"));
        assert_eq!(bad, None, "{name}: {kind}");
    }
}

#[test]
fn of_a_log_after_a_power_cut_only_the_last_batch_may_be_missing() {
    let mut written = written();
    // It had not been noted how far the last flush went.
    let notes = Path::new("flushed");
    written.image.insert(notes.to_owned(), written.before.0[notes].clone());
    let (last, batch) = written.last_batch();
    let table = sweep(
        &written.image,
        |_| 1,
        |dir, name, damage| {
            let outcome = log_outcome(dir, &written);
            let torn = name == last
                && match damage {
                    Damage::Flip(at) => batch.contains(&at),
                    Damage::Cut(at) | Damage::Zero(at) => batch.contains(&at),
                    Damage::Gone => false,
                };
            match (outcome, damage) {
                // A tear is no reason to refuse a log.
                ("last batch cut", _) if torn => outcome,
                ("refused", Damage::Cut(_) | Damage::Zero(_)) if torn => "torn and REFUSED",
                ("last batch cut", _) => "sound and CUT",
                _ => outcome,
            }
        },
    );
    for ((name, kind), outcomes) in table {
        let fine = |outcome: &&&str| matches!(**outcome, "same" | "refused" | "last batch cut");
        assert_eq!(outcomes.keys().find(|outcome| !fine(outcome)), None, "{name}: {kind}");
    }
}

#[test]
fn damage_is_named_and_the_files_are_left_alone() {
    let written = written();
    let (last, batch) = written.last_batch();
    let dir = fast_dir();
    write_image(dir.path(), &written.image);
    let file = dir.path().join(&last);
    let mut bytes = written.image[&last].clone();
    bytes[batch.start] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    for _ in 0..2 {
        let refused = open_log(dir.path()).err().expect("it is damaged");
        let text = refused.to_string();
        assert!(text.contains(&*file.to_string_lossy()) && text.contains("must stay down"), "{text}");
        assert!(
            matches!(refused, LogError::Damaged { offset, .. } if offset == batch.start as u64),
            "{text}"
        );
    }
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn a_batch_in_the_values_of_a_torn_batch_is_no_sign_of_damage() {
    let dir = fast_dir();
    let mut log = open_log(dir.path()).unwrap();
    log.note(&config(g(0))).unwrap();
    log.write(&[persist(g(0), 1, 1, 1)], |_| None).unwrap();
    let name = Path::new("0000000000000001.raftlog");
    let before = (read_image(dir.path()), state(&log).unwrap());
    let end = |image: &Image| image[name].iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // What anyone may send: a batch that is sound in this file.
    let mut forged = persist(g(0), 2, 1, 1);
    forged.entries[0].data = before.0[name][FILE_HEAD_BYTES as usize..end(&before.0)].to_vec().into();
    log.write(&[forged], |_| None).unwrap();
    let mut image = read_image(dir.path());
    let torn = end(&image) - 8;
    image.get_mut(name).unwrap()[torn..].fill(0);
    image.insert("flushed".into(), before.0[Path::new("flushed")].clone());
    let dir = fast_dir();
    write_image(dir.path(), &image);
    let opened = open_log(dir.path()).unwrap();
    assert_eq!(state(&opened).unwrap(), before.1);
}

/// What a build that does not note how far it flushed leaves behind: it went on to new files and removed old
/// ones, and the notes are those of the time before.
#[test]
fn notes_about_files_that_were_needed_no_more_are_no_damage() {
    let written = written();
    let mut image = written.image.clone();
    let notes = decode(&image[Path::new("flushed")]).unwrap();
    let last = *notes.keys().rfind(|file| file.queue == Queue::Append).unwrap();
    let old = LogFile { number: 0, ..last };
    let mut ends = notes.clone();
    ends.insert(old, 900);
    let opened = |ends: &Ends, image: &Image| {
        let mut image = image.clone();
        image.insert("flushed".into(), encode(ends));
        let dir = fast_dir();
        write_image(dir.path(), &image);
        log_outcome(dir.path(), &written)
    };
    assert_eq!(opened(&ends, &image), "refused", "all that is there is noted");
    ends.remove(&last);
    assert_eq!(opened(&ends, &image), "same", "what was written later is not");
    image.insert("flushed".into(), encode(&ends));
    let dir = fast_dir();
    write_image(dir.path(), &image);
    open_log(dir.path()).unwrap().write(&[persist(g(0), 59, 1, 5)], |_| None).unwrap();
    open_log(dir.path()).unwrap();
    // In the midst nothing is ever removed.
    let first = *notes.keys().find(|file| file.queue == Queue::Append).unwrap();
    assert!(first < last);
    ends.insert(LogFile { number: last.number - 1, ..last }, u64::MAX);
    assert_eq!(opened(&ends, &image), "refused");
    image.remove(Path::new(&last.name()));
    assert_eq!(opened(&notes, &image), "refused");
}

/// A log whose next file is a device.
#[cfg(unix)]
fn log_before(device: &str) -> (tempfile::TempDir, DiskLog, String, LogError) {
    let dir = fast_dir();
    let mut log = open_log(dir.path()).unwrap();
    log.note(&config(g(0))).unwrap();
    std::os::unix::fs::symlink(device, dir.path().join("0000000000000002.raftlog")).unwrap();
    let mut acknowledged = String::new();
    for from in 1.. {
        match log.write(&[persist(g(0), from, 1, 1)], |_| None) {
            Ok(_) => acknowledged = state(&log).unwrap(),
            Err(failed) => return (dir, log, acknowledged, failed),
        }
    }
    unreachable!("the first file ends before the numbers do")
}

#[cfg(unix)]
#[test]
fn a_failed_flush_is_final_and_loses_nothing_that_was_flushed() {
    let (dir, mut log, acknowledged, failed) = log_before("/dev/null");
    assert!(matches!(failed, LogError::Flush(_)), "{failed:?}");
    // Whatever the disk would say now.
    let again = log.write(&[persist(g(0), 90, 1, 1)], |_| None);
    assert!(matches!(again, Err(LogError::Flush(_))), "{again:?}");
    let truncate = Truncate { group: g(0), index: LogIndex(3), term: Term(1) };
    assert!(matches!(log.truncate(&[truncate]), Err(LogError::Flush(_))));
    assert!(matches!(log.purger().purge(), Err(LogError::Flush(_))));
    drop(log);
    std::fs::remove_file(dir.path().join("0000000000000002.raftlog")).unwrap();
    assert_eq!(state(&open_log(dir.path()).unwrap()).unwrap(), acknowledged);
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_loses_nothing_that_was_flushed() {
    let (dir, log, acknowledged, failed) = log_before("/dev/full");
    assert!(matches!(failed, LogError::Engine(_)), "{failed:?}");
    drop(log);
    std::fs::remove_file(dir.path().join("0000000000000002.raftlog")).unwrap();
    assert_eq!(state(&open_log(dir.path()).unwrap()).unwrap(), acknowledged);
}

// ---- the rows ------------------------------------------------------------------------------------

/// Entries of each group's log.
const ENTRIES: u64 = 60;
/// Entries between two checkpoints.
const CHECKPOINT: u64 = 10;
const GROUPS: u32 = 2;

fn open_rows(dir: &Path) -> Result<FjallRows, RowError> {
    FjallRows::open(dir, 1 << 20, 1 << 20)
}

/// What an entry does to the rows of its group; some rows come and go.
fn ops(group: GroupId, index: u64) -> Vec<RowOp> {
    let key = |n: u64| format!("row {:02}", n % 12).into_bytes();
    let value = format!("{group} {index} {}", "v".repeat(index as usize % 30)).into_bytes();
    let mut ops = vec![RowOp::Put { key: key(index), value }];
    if index.is_multiple_of(3) {
        ops.push(RowOp::Delete { key: key(index / 3) });
    }
    ops
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// The rows after all entries.
fn expected() -> Vec<Rows> {
    let store = MemoryRows::default();
    let apply = |n| {
        for index in 1..=ENTRIES {
            store.write(vec![(g(n), ops(g(n), index))]).unwrap();
        }
        store.scan(g(n), b"", None, usize::MAX).unwrap()
    };
    (0..GROUPS).map(apply).collect()
}

/// A row store with checkpoints, as a kill leaves it: tables, a journal behind them, and rows beyond the
/// last checkpoint.
fn written_rows(step: impl Fn(&FjallRows, u64)) -> Image {
    let dir = fast_dir();
    let rows = open_rows(dir.path()).unwrap();
    for index in 1..=ENTRIES {
        for n in 0..GROUPS {
            rows.write(vec![(g(n), ops(g(n), index))]).unwrap();
        }
        if index % CHECKPOINT == 0 && index < ENTRIES {
            let meta = GroupMeta { applied: LogIndex(index), term: Term(1), machine: vec![index as u8; 5] };
            rows.put_meta(&(0..GROUPS).map(|n| (g(n), meta.clone())).collect::<Vec<_>>()).unwrap();
            rows.sync().unwrap();
            step(&rows, index);
        }
    }
    rows.sync().unwrap();
    let mut image = read_image(dir.path());
    // Room for what will be written: the same without most of it.
    for bytes in image.values_mut() {
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(written + 16);
    }
    image
}

/// What recovery makes of rows: checkpoint and log behind it. The log begins behind `truncated`.
fn recover_rows(dir: &Path, truncated: u64) -> Result<Vec<Option<Rows>>, RowError> {
    let store = open_rows(dir)?;
    let mut found = Vec::new();
    for n in 0..GROUPS {
        let applied = store.meta(g(n))?.map_or(0, |meta| meta.applied.0);
        if applied < truncated {
            found.push(None);
            continue;
        }
        for index in applied + 1..=ENTRIES {
            store.write(vec![(g(n), ops(g(n), index))])?;
        }
        let rows = store.scan(g(n), b"", None, usize::MAX)?;
        for at in 0..12 {
            let key = format!("row {at:02}").into_bytes();
            let scanned = rows.iter().find(|row| row.0 == key).map(|row| row.1.clone());
            assert_eq!(store.get(g(n), &key)?, scanned);
        }
        found.push(Some(rows));
    }
    Ok(found)
}

fn rows_outcome(dir: &Path, truncated: u64, expected: &[Rows]) -> &'static str {
    let recovered = std::panic::catch_unwind(AssertUnwindSafe(|| recover_rows(dir, truncated)));
    match recovered {
        Ok(Ok(found)) if found.iter().any(Option::is_none) => {
            let same = found.iter().zip(expected).all(|(f, e)| f.as_ref().is_none_or(|f| f == e));
            if same { "from a peer" } else { "DIFFERENT" }
        }
        Ok(Ok(found)) if found.iter().flatten().eq(expected) => "same",
        Ok(Ok(_)) => "DIFFERENT",
        Ok(Err(RowError::Damaged { .. })) => "damaged",
        Ok(Err(RowError::Format { .. })) => "another format",
        Ok(Err(_)) => "error",
        Err(_) => "panic",
    }
}

/// A store with tables, and a journal with what came before and after them.
fn rows_with_tables() -> Image {
    written_rows(|rows, index| {
        if index % 20 == 0 {
            rows.make_table();
        }
    })
}

/// A store with two journals, as it is while the rows of the first one become a table.
fn rows_with_two_journals() -> Image {
    let mut image = written_rows(|_, _| {});
    let journal = image.remove(Path::new("0.jnl")).unwrap();
    let ends = journal.windows(5).enumerate().filter(|(_, at)| *at == b"FJL\x03\x01").map(|(at, _)| at + 4);
    let ends: Vec<_> = ends.collect();
    let (first, second) = journal.split_at(ends[ends.len() / 2]);
    image.insert("0.jnl".into(), first.to_vec());
    image.insert("1.jnl".into(), second.to_vec());
    image.remove(Path::new("noted")).unwrap();
    let dir = fast_dir();
    write_image(dir.path(), &image);
    let mut notes = Notes::open(dir.path()).unwrap();
    notes.note(notes.read(dir.path()).unwrap()).unwrap();
    read_image(dir.path())
}

fn sweep_rows(image: &Image, step: impl Fn(usize) -> usize) {
    let expected = expected();
    for truncated in [0, ENTRIES - CHECKPOINT] {
        let table = sweep(image, &step, |dir, _, _| rows_outcome(dir, truncated, &expected));
        for ((name, kind), outcomes) in table {
            let fine = |outcome: &&&str| match **outcome {
                "same" | "damaged" | "from a peer" => true,
                // It may as well be the file of a newer build.
                "another format" => name == "version",
                _ => false,
            };
            assert_eq!(outcomes.keys().find(|outcome| !fine(outcome)), None, "{name}: {kind}");
        }
    }
}

/// Some sixteen places of each file; with `SWEEP_EVERY_BYTE` in the environment every one, which takes
/// many minutes.
fn some(bytes: usize) -> usize {
    if std::env::var_os("SWEEP_EVERY_BYTE").is_some() { 1 } else { (bytes / 16).max(1) }
}

#[test]
fn damaged_tables_and_their_journal_are_found_or_the_log_makes_up_for_it() {
    sweep_rows(&rows_with_tables(), some);
}

#[test]
fn damaged_journals_are_found_or_the_log_makes_up_for_it() {
    sweep_rows(&rows_with_two_journals(), some);
}

#[test]
fn damage_found_while_reading_is_not_forgotten() {
    let mut image = rows_with_tables();
    let dir = fast_dir();
    let table = image.keys().find(|name| name.starts_with("keyspaces/1/tables")).unwrap().clone();
    image.get_mut(&table).unwrap()[60] ^= 1;
    write_image(dir.path(), &image);
    let rows = open_rows(dir.path()).unwrap();
    let read = rows.scan(g(0), b"", None, usize::MAX);
    assert!(matches!(read, Err(RowError::Damaged { .. })), "{read:?}");
    let meta = GroupMeta { applied: LogIndex(99), term: Term(1), machine: vec![] };
    assert!(matches!(rows.write(vec![(g(0), ops(g(0), 61))]), Err(RowError::Damaged { .. })));
    assert!(matches!(rows.put_meta(&[(g(0), meta)]), Err(RowError::Damaged { .. })));
    assert!(matches!(rows.sync(), Err(RowError::Damaged { .. })));
    drop(rows);
    assert!(matches!(open_rows(dir.path()), Err(RowError::Damaged { .. })));
    let anew = FjallRows::open_or_set_aside(dir.path(), 1 << 20, 1 << 20).unwrap();
    assert_eq!(anew.meta(g(0)).unwrap(), None);
    let aside = dir.path().with_extension("damaged");
    assert!(aside.join(table).exists(), "it is kept");
    std::fs::remove_dir_all(aside).unwrap();
}

#[test]
fn a_table_that_was_not_finished_is_no_damage() {
    for bytes in [0, 100] {
        let mut image = rows_with_tables();
        image.insert("keyspaces/1/tables/900".into(), vec![7; bytes]);
        let dir = fast_dir();
        write_image(dir.path(), &image);
        assert_eq!(rows_outcome(dir.path(), ENTRIES - CHECKPOINT, &expected()), "same");
        assert!(!dir.path().join("keyspaces/1/tables/900").exists(), "it is removed");
    }
}

#[test]
fn a_table_that_is_gone_is_damage() {
    let mut image = rows_with_tables();
    let table = image.keys().find(|name| name.starts_with("keyspaces/1/tables")).unwrap().clone();
    image.remove(&table);
    let dir = fast_dir();
    write_image(dir.path(), &image);
    let damaged = open_rows(dir.path()).err().expect("it is damaged");
    let path = dir.path().join(table);
    assert!(matches!(&damaged, RowError::Damaged { path: found, .. } if *found == path), "{damaged:?}");
}

/// What comes to the disk or does not.
const PAGE_BYTES: usize = 4096;

#[test]
fn what_a_power_cut_left_of_unflushed_rows_is_cut_off() {
    let journal = Path::new("0.jnl");
    let noted = rows_with_tables();
    let dir = fast_dir();
    write_image(dir.path(), &noted);
    let rows = open_rows(dir.path()).unwrap();
    for key in [b"a", b"b", b"c"] {
        // Something that fjall cannot compress.
        let noise = |at: usize| wide_hash(&[key, &at.to_be_bytes()[..]].concat()).to_be_bytes();
        let put = RowOp::Put { key: key.to_vec(), value: (0..PAGE_BYTES / 4).flat_map(noise).collect() };
        rows.write(vec![(g(GROUPS), vec![put])]).unwrap();
    }
    drop(rows);
    let image = read_image(dir.path());
    let bytes = &image[journal];
    let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (begin, end) = (end(&noted[journal]), end(bytes));
    assert!(end - begin > 12 * PAGE_BYTES, "{begin} {end}");
    let expected = expected();
    for at in (begin..end).step_by(PAGE_BYTES / 3) {
        let mut hole = bytes.clone();
        hole[at..end.min(at + PAGE_BYTES)].fill(0);
        let damaged = [Damage::Flip(at), Damage::Cut(at), Damage::Zero(at)].map(|damage| damage.of(bytes));
        for bytes in damaged.into_iter().flatten().chain([hole]) {
            let dir = fast_dir();
            write_image(dir.path(), &image);
            std::fs::write(dir.path().join(journal), bytes).unwrap();
            for _ in 0..2 {
                assert_eq!(rows_outcome(dir.path(), ENTRIES - CHECKPOINT, &expected), "same", "{at}");
            }
        }
    }
}

#[test]
fn rows_of_a_newer_format_are_refused_and_left_where_they_are() {
    let mut image = rows_with_tables();
    *image.get_mut(Path::new("version")).unwrap().last_mut().unwrap() = 200;
    let dir = fast_dir();
    write_image(dir.path(), &image);
    let refused = FjallRows::open_or_set_aside(dir.path(), 1 << 20, 1 << 20).err().expect("it is newer");
    assert!(matches!(refused, RowError::Format { .. }), "{refused:?}");
    assert_eq!(read_image(dir.path()), image);
    // A kill while it is written for the first time.
    for torn in ["", "FJL", "\0\0\0\0"] {
        std::fs::write(dir.path().join("version"), torn).unwrap();
        assert!(matches!(open_rows(dir.path()), Err(RowError::Damaged { .. })), "{torn:?}");
    }
}

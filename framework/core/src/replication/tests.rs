//! Behaviour of three drivers, and what each fence prevents.

use bytes::Bytes;

use super::group::Fence;
use super::testing::*;
use super::*;
use crate::id::{GroupId, LogIndex, MemberId, PartitionId, RecordSeq, Term};

fn small_log(config: &mut DriverConfig) {
    config.log_keep_bytes = 100;
    config.log_tail_bytes_max = 1000;
}

fn without(net: &mut Net, fences: &'static [Fence]) {
    for member in [M1, M2, M3] {
        net.node(member).driver.fences.without = fences;
    }
}

#[test]
fn the_preferred_leader_is_elected_at_once_and_records_reach_all() {
    let mut net = Net::three(1);
    let (leader, term) = net.leader().expect("no tick is needed");
    assert_eq!(leader, M1);
    assert!(net.events(M1).contains(&EpochEvent::Opened { term }));
    net.propose(M1, term, 0, 3);
    net.propose(M1, term, 3, 2);
    net.pump();
    assert_eq!(net.records(M1), 5);
    net.tick(2);
    assert_eq!((net.records(M2), net.records(M3)), (5, 5), "followers learn the commit with a heartbeat");
    assert!(net.gaps(M2).is_empty());
}

#[test]
fn a_single_replica_commits_alone() {
    let mut net = Net::with(&[1], 1, |_| {});
    let (_, term) = net.leader().unwrap();
    net.propose(M1, term, 0, 1);
    net.pump();
    assert_eq!(net.records(M1), 1);
    net.node(M1).driver.read_index(G, term, 5);
    net.pump();
    assert!(net.events(M1).contains(&EpochEvent::ReadConfirmed { epoch: term, ctx: 5 }));
    net.propose(M1, term, 7, 1);
    net.pump();
    let (_, later) = net.elect();
    assert!(later > term, "a poisoned epoch is left for a fresh term");
}

#[test]
fn a_killed_node_recovers_what_was_acknowledged() {
    let mut net = Net::three(2);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 4);
    net.pump();
    for member in [M1, M2, M3] {
        net.kill(member);
    }
    for member in [M1, M2, M3] {
        net.restart(member);
    }
    net.pump();
    net.elect();
    net.tick(3);
    assert_eq!([M1, M2, M3].map(|m| net.records(m)), [4; 3]);
}

#[test]
fn a_minority_leader_commits_nothing_and_steps_down() {
    let mut net = Net::three(3);
    let (leader, term) = net.elect();
    net.isolate(leader);
    net.propose(leader, term, 0, 1);
    net.tick(60);
    assert_eq!(net.records(leader), 0);
    assert!(net.events(leader).contains(&EpochEvent::Closed { term }));
    let (other, newer) = net.elect();
    assert!(other != leader && newer > term);
    net.propose(other, newer, 0, 1);
    net.pump();
    net.heal();
    net.tick(5);
    assert_eq!([M1, M2, M3].map(|m| net.records(m)), [1; 3], "the cut-off record is gone everywhere");
}

#[test]
fn reads_are_confirmed_only_with_a_majority_and_in_the_same_epoch() {
    let mut net = Net::three(4);
    let (leader, term) = net.elect();
    net.node(leader).driver.read_index(G, term, 9);
    net.pump();
    assert!(net.events(leader).contains(&EpochEvent::ReadConfirmed { epoch: term, ctx: 9 }));
    net.isolate(leader);
    net.node(leader).driver.read_index(G, term, 10);
    net.node(leader).driver.read_index(G, Term(term.0 + 1), 11);
    net.tick(60);
    net.heal();
    net.tick(60);
    let confirmed = |e: &EpochEvent| matches!(e, EpochEvent::ReadConfirmed { .. });
    assert!(!net.events(leader).iter().any(confirmed));
}

#[test]
fn a_read_round_lost_on_the_way_is_tried_again_with_a_heartbeat() {
    let mut net = Net::three(4);
    let (leader, term) = net.elect();
    net.isolate(leader);
    net.node(leader).driver.read_index(G, term, 1);
    net.pump();
    net.heal();
    net.tick(2);
    assert!(net.events(leader).contains(&EpochEvent::ReadConfirmed { epoch: term, ctx: 1 }));
}

/// Record 0 is pending, record 1 is dropped during a hand-over that fails, then comes `third`.
fn drop_one_in_the_middle(without_fences: &'static [Fence], third: u64) -> (Net, Term) {
    let mut net = Net::three(5);
    without(&mut net, without_fences);
    let (leader, term) = net.elect();
    assert_eq!(leader, M1);
    net.propose(M1, term, 0, 1);
    net.cut_one_way(M1, M2);
    assert!(net.node(M1).driver.transfer(G, M2));
    net.propose(M1, term, 1, 1);
    net.tick(10);
    net.heal();
    net.propose(M1, term, third, 1);
    net.pump();
    net.elect();
    net.tick(3);
    (net, term)
}

#[test]
fn a_refused_proposal_poisons_its_epoch_and_leaves_no_gap() {
    for third in [1, 2] {
        let (mut net, term) = drop_one_in_the_middle(&[], third);
        assert!([M1, M2, M3].iter().all(|m| net.gaps(*m).is_empty()));
        let events = net.events(M1);
        let refused = EpochEvent::Refused { epoch: term, first_seq: RecordSeq(1) };
        assert!(events.contains(&refused));
        assert!(net.leader().unwrap().1 > term, "service goes on in a fresh epoch");
        assert_eq!([M1, M2, M3].map(|m| net.records(m)), [1; 3], "what was accepted before is kept");
    }
}

#[test]
fn control_without_the_poison_a_refused_epoch_goes_on() {
    let (net, _) = drop_one_in_the_middle(&[Fence::Poison], 1);
    assert_eq!(net.records(M1), 2, "a record of an epoch that its host has given up");
}

#[test]
fn control_without_poison_and_sequence_a_gap_is_committed() {
    let (net, term) = drop_one_in_the_middle(&[Fence::Poison, Fence::Sequence], 2);
    assert_eq!(net.gaps(M1), [(term.0, 1, 2)]);
}

#[test]
fn a_proposal_out_of_sequence_is_refused() {
    let mut control = Net::three(6);
    without(&mut control, &[Fence::Sequence]);
    let (leader, term) = control.elect();
    control.propose(leader, term, 0, 1);
    control.propose(leader, term, 2, 1);
    control.pump();
    assert_eq!(control.gaps(leader), [(term.0, 1, 2)], "control: without the fence the gap is committed");

    let mut net = Net::three(6);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 1);
    net.propose(leader, term, 2, 1);
    net.propose(leader, term, 1, 1);
    net.pump();
    assert!(net.gaps(leader).is_empty());
    assert_eq!(net.records(leader), 1, "the right record comes too late: the epoch is poisoned");
    let refused = EpochEvent::Refused { epoch: term, first_seq: RecordSeq(1) };
    assert!(net.events(leader).contains(&refused));
}

#[test]
fn a_proposal_of_an_older_epoch_is_refused_and_the_newer_one_stays_open() {
    for fence in [true, false] {
        let mut net = Net::three(7);
        let (leader, old) = net.elect();
        net.propose(leader, old, 1, 1);
        net.pump();
        let (again, term) = net.elect();
        assert_eq!(again, leader, "a poisoned leader takes a fresh term at once");
        if !fence {
            without(&mut net, &[Fence::Epoch]);
        }
        net.events(leader);
        net.propose(leader, old, 0, 1);
        net.pump();
        let strays = net.node(leader).machines[&G].strays;
        if fence {
            assert_eq!(strays, 0);
            let refused = EpochEvent::Refused { epoch: old, first_seq: RecordSeq(0) };
            assert_eq!(net.events(leader), [refused]);
            net.propose(leader, term, 0, 1);
            net.pump();
            assert_eq!(net.records(leader), 1);
        } else {
            assert_eq!(strays, 1, "control: without the fence the stray record is committed");
        }
    }
}

#[test]
fn nothing_is_taken_before_the_epoch_has_opened() {
    for fence in [true, false] {
        let mut net = Net::three(8);
        if !fence {
            without(&mut net, &[Fence::Opened]);
        }
        let (leader, _) = net.elect();
        net.kill(leader);
        net.node(M2).driver.member_down(leader);
        net.node(M3).driver.member_down(leader);
        // Stop as soon as member 2 leads, before its first entry is applied.
        let mut term = Term(0);
        for _ in 0..20 {
            let status = net.status(M2);
            if status.role == Role::Leader {
                assert!(!status.open);
                term = status.term;
                break;
            }
            net.single_step();
        }
        assert!(term > Term(0));
        net.propose(M2, term, 0, 1);
        net.pump();
        assert_eq!(net.records(M2), u64::from(!fence));
    }
}

#[test]
fn a_members_death_moves_its_leaderships_at_once() {
    let mut net = Net::three(9);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 1);
    net.pump();
    net.kill(M1);
    net.node(M2).driver.member_down(M1);
    net.node(M3).driver.member_down(M1);
    net.pump();
    let (next, newer) = net.leader().expect("no tick is needed");
    assert!(next == M2 && newer > term);
    assert_eq!(net.records(M2), 1);
}

#[test]
fn the_second_in_line_takes_over_when_the_first_does_not() {
    let mut net = Net::three(10);
    net.elect();
    net.kill(M1);
    net.node(M3).driver.member_down(M1);
    net.tick(2);
    assert_eq!(net.leader(), None, "the first had its chance");
    net.tick(1);
    assert_eq!(net.leader().map(|l| l.0), Some(M3), "well before any election time-out");
}

#[test]
fn leadership_goes_home_once_the_preferred_leader_is_well() {
    let mut net = Net::three(11);
    net.elect();
    net.kill(M1);
    net.node(M2).driver.member_down(M1);
    net.pump();
    let (leader, term) = net.leader().unwrap();
    assert_eq!(leader, M2);
    net.propose(M2, term, 0, 1);
    net.restart(M1);
    net.tick(10);
    assert_eq!(net.leader().map(|l| l.0), Some(M2), "not before it has been well for a while");
    net.tick(30);
    let (home, newer) = net.leader().unwrap();
    assert!(home == M1 && newer > term);
    assert_eq!(net.records(M1), 1);
    let events = net.events(M2);
    let told = events.iter().position(|e| *e == EpochEvent::Transferring { epoch: term, to: M1 });
    let closed = events.iter().position(|e| *e == EpochEvent::Closed { term });
    assert!(told.is_some() && told < closed);
    assert!(!events.iter().any(|e| matches!(e, EpochEvent::Refused { .. })), "nothing was refused by it");
}

#[test]
fn a_follower_far_behind_gets_a_snapshot() {
    let mut net = Net::with(&[1, 2, 3], 12, small_log);
    let (leader, term) = net.elect();
    net.kill(M3);
    for n in 0..40 {
        net.propose_sized(leader, term, n, 1, 100);
    }
    net.pump();
    net.tick(12);
    let truncate = net.checkpoint(leader).expect("a silent follower holds nothing back");
    assert!(truncate.index > LogIndex(30));
    assert!(net.status(leader).first > LogIndex(30));
    net.restart(M3);
    net.tick(30);
    assert_eq!(net.records(M3), 40);
    assert_eq!(net.status(M3).applied, net.status(leader).applied);
    assert!(net.status(M3).first > LogIndex(30), "its log begins behind the snapshot");
    net.propose(leader, term, 40, 1);
    net.tick(3);
    assert_eq!(net.records(M3), 41);
    net.kill(M3);
    net.restart(M3);
    net.tick(30);
    assert_eq!(net.records(M3), 41);
}

#[test]
fn a_live_follower_keeps_its_log_until_the_tail_is_too_long() {
    let mut net = Net::with(&[1, 2, 3], 13, small_log);
    let (leader, term) = net.elect();
    net.tick(3);
    net.cut_one_way(leader, M3);
    for n in 0..4 {
        net.propose_sized(leader, term, n, 1, 100);
    }
    net.pump();
    let first = net.checkpoint(leader).map_or(LogIndex(0), |t| t.index);
    assert!(first <= LogIndex(1), "all that the follower lacks is kept");
    for n in 4..10 {
        net.propose_sized(leader, term, n, 1, 100);
    }
    net.pump();
    assert!(net.checkpoint(leader).is_some());
}

#[test]
fn a_replica_that_lost_its_rows_takes_a_snapshot_and_does_not_lead_before() {
    let mut net = Net::three(14);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 5);
    net.tick(3);
    net.kill(M2);
    net.restart_without_rows(M1);
    net.tick(5);
    assert!(net.status(M1).rows_lost);
    net.node(M1).driver.member_down(M2);
    net.tick(40);
    let (leader, term) = net.elect();
    assert_eq!(leader, M3, "its vote counts, but it does not lead");
    net.propose(leader, term, 0, 1);
    net.tick(30);
    assert!(!net.status(M1).rows_lost);
    assert_eq!(net.records(M1), 6);
}

#[test]
fn a_follower_without_rows_is_known_to_its_leader_and_is_not_made_the_leader() {
    let mut net = Net::three(16);
    let (leader, term) = net.elect();
    assert_eq!(leader, M1);
    net.propose(leader, term, 0, 5);
    net.tick(3);
    net.restart_without_rows(M2);
    let needs = |net: &mut Net| net.status(M1).followers.iter().find(|f| f.member == M2).unwrap().snapshot;
    // It learns who leads, asks for a snapshot, and does not get it yet.
    for _ in 0..2 {
        net.tick_alone(M1);
    }
    net.pump();
    assert!(!needs(&mut net));
    net.cut_one_way(M1, M2);
    net.tick_alone(M2);
    net.pump();
    assert!(needs(&mut net) && net.status(M2).rows_lost);
    assert!(!net.node(M1).driver.transfer(G, M2));
    assert!(net.status(M1).open, "proposals are still taken");
    net.heal();
    net.tick(300);
    assert!(!needs(&mut net) && !net.status(M2).rows_lost);
    assert!(net.node(M1).driver.transfer(G, M2));
}

#[test]
fn a_replica_without_rows_that_has_the_longest_log_hands_it_over() {
    let mut net = Net::three(17);
    let (leader, term) = net.elect();
    assert_eq!(leader, M1);
    net.propose(leader, term, 0, 5);
    net.tick(3);
    net.isolate(M3);
    net.propose(leader, term, 5, 5);
    net.tick(3);
    assert_eq!((net.records(M2), net.records(M3)), (10, 5));
    // The first stays down; the second has what was promised, but no rows to go on from.
    net.kill(M1);
    net.restart_without_rows(M2);
    net.heal();
    net.tick(300);
    assert_eq!(net.leader().map(|(leader, _)| leader), Some(M3));
    assert!(net.status(M3).open && !net.status(M2).rows_lost);
    assert_eq!((net.records(M2), net.records(M3)), (10, 10));
    let opened = |events: Vec<EpochEvent>| events.iter().any(|e| matches!(e, EpochEvent::Opened { .. }));
    assert!(!opened(net.events(M2)), "it took no proposals meanwhile");
}

#[test]
fn a_replica_without_rows_that_nobody_can_follow_leads_for_a_while_only() {
    let mut net = Net::with(&[1, 2, 3], 18, small_log);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 5);
    net.tick(3);
    net.isolate(M3);
    for n in 5..15 {
        net.propose_sized(leader, term, n, 1, 1000);
    }
    net.tick(3);
    assert!(net.checkpoint(M2).is_some_and(|t| t.index > net.status(M3).last), "the third needs a snapshot");
    net.kill(M1);
    net.restart_without_rows(M2);
    net.heal();
    let mut led = false;
    let mut gave_up = false;
    for _ in 0..400 {
        net.tick(1);
        let leads = net.status(M2).role == Role::Leader;
        gave_up |= led && !leads;
        led |= leads;
    }
    assert!(led && gave_up);
    assert!(!net.status(M2).open && !net.status(M3).open, "what was promised is not to be had");
    // With the first, it is.
    net.restart(M1);
    net.tick(400);
    assert_eq!((net.records(M2), net.records(M3)), (15, 15));
}

#[test]
fn a_replica_without_rows_votes_once_its_leader_has_fallen_silent() {
    let mut net = Net::three(19);
    let (leader, term) = net.elect();
    assert_eq!(leader, M1);
    net.propose(leader, term, 0, 5);
    net.tick(3);
    net.restart_without_rows(M2);
    for _ in 0..2 {
        net.tick_alone(M1);
    }
    net.pump();
    assert_eq!(net.status(M2).leader, Some(M1));
    net.isolate(M1);
    net.tick(60);
    assert_eq!(net.status(M3).role, Role::Leader);
}

/// What a member heard of the round since it was last asked.
fn commit_of(net: &mut Net, member: MemberId, round: u64) -> Option<LogIndex> {
    net.events(member).into_iter().rev().find_map(|event| match event {
        EpochEvent::CommitIs { index, round: asked } if asked == round => Some(index),
        _ => None,
    })
}

#[test]
fn every_replica_learns_how_far_the_log_was_committed_when_it_asked() {
    let mut net = Net::three(20);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 5);
    net.pump();
    let committed = net.status(leader).commit;
    for member in [M1, M2, M3] {
        net.node(member).driver.ask_commit(7);
    }
    net.pump();
    for member in [M1, M2, M3] {
        assert_eq!(commit_of(&mut net, member, 7), Some(committed), "{member}");
    }
}

#[test]
fn a_leader_without_a_majority_tells_nobody_how_far_the_log_is_committed() {
    let mut net = Net::three(21);
    let (leader, term) = net.elect();
    assert_eq!(leader, M1);
    net.propose(leader, term, 0, 5);
    net.pump();
    // The second hears of the first alone; both are cut off from the third and do not know it yet.
    net.cut_one_way(M2, M1);
    net.isolate(M3);
    net.node(M1).driver.ask_commit(1);
    net.pump();
    assert_eq!(commit_of(&mut net, M1, 1), None);
    net.heal();
    net.isolate(M1);
    net.tick(60);
    let (leader, term) = net.leader().unwrap();
    assert_ne!(leader, M1);
    net.propose(leader, term, 0, 5);
    net.pump();
    // The old leader's own answer is not heard by anybody now.
    net.node(M1).driver.ask_commit(2);
    net.pump();
    assert_eq!(commit_of(&mut net, M1, 2), None);
    let other = if leader == M2 { M3 } else { M2 };
    net.node(other).driver.ask_commit(3);
    net.pump();
    assert_eq!(commit_of(&mut net, other, 3), Some(net.status(leader).commit));
}

#[test]
fn rounds_of_others_and_malformed_ones_are_dropped() {
    let mut net = Net::three(22);
    let (leader, _) = net.elect();
    assert_eq!(leader, M1);
    let context = |asker: u64| [(1 << 63 | asker).to_be_bytes(), 1_u64.to_be_bytes()].concat();
    let asked = |contexts: &[Vec<u8>]| {
        let entry = |data: &Vec<u8>| WireEntry {
            term: Term(0),
            index: LogIndex(0),
            kind: EntryKind::Normal,
            data: data.clone().into(),
        };
        let entries = contexts.iter().map(entry).collect();
        RaftMessage { entries, ..bare(MessageKind::ReadIndex, Term(0)) }
    };
    let driver = &mut net.node(M1).driver;
    assert_eq!(driver.step(M2, G, asked(&[context(2)])), Ok(()));
    for forged in [
        asked(&[]),
        asked(&[context(3)]),
        asked(&[context(2), context(2)]),
        asked(&[context(2)[..15].to_vec()]),
        asked(&[[7_u64.to_be_bytes(), 1_u64.to_be_bytes()].concat()]),
    ] {
        assert_eq!(driver.step(M2, G, forged.clone()), Err(Dropped::Implausible), "{forged:?}");
    }
    let driver = &mut net.node(M2).driver;
    assert_eq!(driver.step(M3, G, asked(&[context(3)])), Err(Dropped::Kind), "it does not lead");
    let told = |asker| RaftMessage {
        kind: MessageKind::ReadIndexResponse,
        term: Term(1),
        ..asked(&[context(asker)])
    };
    assert_eq!(driver.step(M1, G, told(3)), Err(Dropped::Implausible));
}

#[test]
fn garbage_and_strangers_change_nothing() {
    let mut net = Net::three(15);
    let (leader, term) = net.elect();
    let before = net.status(leader);
    let message = |kind| RaftMessage {
        kind,
        term,
        log_term: Term(0),
        index: LogIndex(0),
        commit: LogIndex(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: LogIndex(0),
        request_snapshot: LogIndex(0),
        priority: 0,
        context: bytes::Bytes::new(),
        entries: Vec::new(),
        snapshot: None,
    };
    let driver = &mut net.node(leader).driver;
    let mut beat = message(MessageKind::Heartbeat);
    beat.commit = LogIndex(u64::MAX);
    assert_eq!(driver.step(M2, G, beat.clone()), Err(Dropped::Implausible));
    let mut answer = message(MessageKind::AppendResponse);
    answer.index = LogIndex(1 << 40);
    assert_eq!(driver.step(M2, G, answer), Err(Dropped::Implausible));
    let mut local = message(MessageKind::AppendResponse);
    local.term = Term(0);
    assert_eq!(driver.step(M2, G, local), Err(Dropped::Implausible));
    assert_eq!(driver.step(MemberId(9), G, beat.clone()), Err(Dropped::Stranger));
    assert_eq!(driver.step(leader, G, beat.clone()), Err(Dropped::Stranger));
    assert_eq!(driver.step(M2, GroupId::of(PartitionId(0)), beat), Err(Dropped::NoGroup));
    for kind in [MessageKind::TransferLeader, MessageKind::Snapshot] {
        assert_eq!(driver.step(M2, G, message(kind)), Err(Dropped::Kind));
    }
    let mut append = message(MessageKind::Append);
    append.entries =
        vec![WireEntry { term, index: LogIndex(7), kind: EntryKind::Normal, data: bytes::Bytes::new() }];
    assert_eq!(driver.step(M2, G, append), Err(Dropped::Implausible));
    net.pump();
    let mut after = net.status(leader);
    after.followers = before.followers.clone();
    assert_eq!(after, before);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut net = Net::three(seed);
        let (leader, _) = net.elect();
        net.kill(leader);
        net.tick(60);
        let (leader, term) = net.elect();
        net.propose(leader, term, 0, 1);
        net.tick(10);
        net.trace
    };
    assert_eq!(run(21), run(21));
    assert_ne!(run(21), run(22));
}

#[test]
fn a_group_that_cannot_be_opened_says_why() {
    let mut driver = Driver::new(DriverConfig::new(M1, 0));
    let mut seed = GroupSeed::empty(G, vec![M2, M3], vec![M2, M3]);
    assert!(matches!(driver.open_group(seed.clone()), Err(OpenError::NotVoter(_))));
    seed.voters.push(M1);
    seed.applied = LogIndex(3);
    assert!(matches!(driver.open_group(seed.clone()), Err(OpenError::LogLost { .. })));
    seed.applied = LogIndex(0);
    seed.entries = vec![Entry { index: 2, term: 1, ..Entry::default() }];
    assert!(matches!(driver.open_group(seed.clone()), Err(OpenError::Gap { .. })));
    seed.entries.clear();
    driver.open_group(seed.clone()).unwrap();
    assert!(matches!(driver.open_group(seed), Err(OpenError::Open(_))));
}

/// A host as simple as can be: proposes in sequence, believes events.
#[derive(Default)]
struct Host {
    /// Open epoch, next record, first record not yet applied.
    epoch: Option<(Term, u64, u64)>,
}

/// Seeds tried; each a few hundred steps.
const STORMS: u64 = 150;

/// What a storm has seen acknowledged: applied by the leader of the epoch while it was open.
struct Storm {
    net: Net,
    hosts: [Host; 3],
    acknowledged: Vec<(u64, u64)>,
    random: u64,
}

impl Storm {
    fn below(&mut self, limit: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % limit
    }

    fn listen(&mut self) {
        for (host, member) in self.hosts.iter_mut().zip([M1, M2, M3]) {
            for event in self.net.events(member) {
                match event {
                    EpochEvent::Opened { term } => host.epoch = Some((term, 0, 0)),
                    EpochEvent::Closed { .. } | EpochEvent::Refused { .. } => host.epoch = None,
                    _ => {}
                }
            }
            let machine = &self.net.node(member).machines[&G];
            if let Some((term, _, acked)) = &mut host.epoch
                && machine.epoch == term.0
            {
                self.acknowledged.extend((*acked..machine.next).map(|n| (term.0, n)));
                *acked = machine.next;
            }
        }
    }

    fn act(&mut self) {
        let at = self.below(3) as usize;
        let member = [M1, M2, M3][at];
        let alive = self.net.is_alive(member);
        match self.below(40) {
            0 if alive => {
                self.net.kill(member);
                self.hosts[at].epoch = None;
                if self.below(2) == 0 {
                    for other in [M1, M2, M3] {
                        self.net.node(other).driver.member_down(member);
                    }
                }
            }
            0..=2 if !alive => self.net.restart(member),
            1 => self.net.isolate(member),
            2 => self.net.cut_one_way(member, [M2, M3, M1][at]),
            3..=5 => self.net.heal(),
            6 if alive => {
                let to = [M3, M1, M2][at];
                self.net.node(member).driver.transfer(G, to);
            }
            7 if alive => self.net.node(member).driver.member_down([M2, M3, M1][at]),
            8 if alive => drop(self.net.checkpoint(member)),
            9..=20 if alive => {
                if let Some((term, next, _)) = &mut self.hosts[at].epoch {
                    let (term, first) = (*term, *next);
                    *next += 1;
                    self.net.propose_sized(member, term, first, 1, 50);
                }
            }
            21..=30 if alive => self.net.tick_alone(member),
            _ => {
                for _ in 0..self.below(12) {
                    self.net.single_step();
                }
            }
        }
        self.listen();
    }

    /// Faults first, then none: the group must serve again and have kept what was acknowledged.
    fn rage(seed: u64) -> usize {
        let net = Net::with(&[1, 2, 3], seed, small_log);
        let mut storm = Self { net, hosts: Default::default(), acknowledged: Vec::new(), random: seed };
        storm.listen();
        for _ in 0..600 {
            storm.act();
        }
        let Self { mut net, acknowledged, .. } = storm;
        net.heal();
        for member in [M1, M2, M3] {
            if !net.is_alive(member) {
                net.restart(member);
            }
        }
        net.tick(300);
        let (leader, term) = net.elect();
        let next = net.node(leader).machines[&G].next_seq(term).0;
        net.propose(leader, term, next, 1);
        net.tick(5);
        let machines = [M1, M2, M3].map(|m| net.node(m).machines[&G].clone());
        assert_eq!(machines[0].log.last(), Some(&(term.0, next)), "seed {seed}: the healed group serves");
        for machine in &machines {
            assert_eq!(machine, &machines[0], "seed {seed}: replicas agree");
            assert!(machine.gaps.is_empty() && machine.strays == 0, "seed {seed}: no gap, no stray");
        }
        for record in &acknowledged {
            assert!(machines[0].log.contains(record), "seed {seed}: {record:?} was acknowledged");
        }
        acknowledged.len()
    }
}

#[test]
fn storms_lose_nothing_and_pass() {
    let acknowledged: usize = (0..STORMS).map(Storm::rage).sum();
    assert!(acknowledged as u64 > STORMS * 10, "storms leave room for work: {acknowledged} records");
}

#[test]
fn forged_positions_are_dropped() {
    let mut net = Net::three(1);
    let (leader, term) = net.elect();
    let follower = [M1, M2, M3].into_iter().find(|m| *m != leader).unwrap();
    let append = |index: u64, log_term: u64| RaftMessage {
        kind: MessageKind::Append,
        term,
        log_term: Term(log_term),
        index: LogIndex(index),
        commit: LogIndex(index),
        commit_term: Term(0),
        reject: false,
        reject_hint: LogIndex(0),
        request_snapshot: LogIndex(0),
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
        snapshot: None,
    };
    let answer = RaftMessage { kind: MessageKind::AppendResponse, ..append(200, term.0) };
    for (to, from, message) in [
        // raft-rs takes term 0 for that of an entry it does not have, and would commit up to it
        (follower, leader, append(200, 0)),
        (follower, leader, RaftMessage { term: Term(u64::MAX), ..append(0, 0) }),
        (follower, leader, append(u64::MAX, term.0)),
        (leader, follower, RaftMessage { reject: true, ..answer.clone() }),
        (leader, follower, answer),
        (leader, follower, RaftMessage { kind: MessageKind::RequestPreVote, priority: -1, ..append(0, 0) }),
    ] {
        let dropped = net.node(to).driver.step(from, G, message.clone());
        assert_eq!(dropped, Err(Dropped::Implausible), "{message:?}");
    }
    net.propose(leader, term, 0, 1);
    net.tick(5);
    assert!([M1, M2, M3].iter().all(|m| net.records(*m) == 1));
}

#[test]
fn messages_that_come_again_late_or_out_of_order_do_no_harm() {
    for seed in 0..30u64 {
        let mut net = Net::three(seed);
        net.keep_history();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        let mut next = std::collections::BTreeMap::new();
        for _ in 0..600 {
            match random() % 8 {
                0 | 1 => {
                    if let Some((leader, epoch)) = net.leader() {
                        let first = next.entry(epoch).or_insert(0);
                        net.propose(leader, epoch, *first, 1);
                        *first += 1;
                    }
                }
                2 | 3 => net.send_again(random(), random()),
                4 => net.overtake(random()),
                5 => net.tick_alone([M1, M2, M3][random() % 3]),
                _ => drop(net.single_step()),
            }
        }
        net.pump();
        net.tick(60);
        let (leader, epoch) = net.elect();
        let records = net.records(leader);
        let first = next.get(&epoch).copied().unwrap_or(0);
        net.propose(leader, epoch, first, 1);
        net.tick(30);
        for member in [M1, M2, M3] {
            assert_eq!(net.gaps(member), [], "seed {seed}: a record is missing or came twice");
            assert_eq!(net.records(member), records + 1, "seed {seed}: member {member} is behind");
        }
    }
}

/// A message without content, as the leader of this term might send it.
fn bare(kind: MessageKind, term: Term) -> RaftMessage {
    RaftMessage {
        kind,
        term,
        log_term: Term(0),
        index: LogIndex(0),
        commit: LogIndex(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: LogIndex(0),
        request_snapshot: LogIndex(0),
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
        snapshot: None,
    }
}

#[test]
fn forged_entries_are_dropped() {
    let mut net = Net::three(1);
    let (leader, term) = net.elect();
    assert_eq!((leader, net.status(M2).last, term), (M1, LogIndex(1), Term(1)));
    let term = Term(5);
    let entry = |index, term| WireEntry {
        term: Term(term),
        index: LogIndex(index),
        kind: EntryKind::Normal,
        data: Bytes::new(),
    };
    let append = |at: (u64, u64), entries| RaftMessage {
        index: LogIndex(at.0),
        log_term: Term(at.1),
        entries,
        ..bare(MessageKind::Append, term)
    };
    let change = |kind| append((1, 1), vec![WireEntry { kind, ..entry(2, 5) }]);
    for forged in [
        append((1, 1), vec![entry(2, 5), entry(4, 5)]),
        append((1, 1), vec![entry(1, 5)]),
        append((1, 1), vec![entry(2, 5), entry(3, 4)]),
        append((1, 2), vec![entry(2, 1)]),
        append((0, 0), vec![entry(1, 0)]),
        append((1, 1), vec![entry(2, 6)]),
        append((1, 0), vec![entry(2, 5)]),
        change(EntryKind::Change),
        change(EntryKind::JointChange),
    ] {
        let dropped = net.node(M2).driver.step(M1, G, forged.clone());
        assert_eq!(dropped, Err(Dropped::Implausible), "{forged:?}");
    }
    assert_eq!(net.status(M2).term, Term(1), "nothing was changed");
    for sound in [append((1, 1), vec![entry(2, 3), entry(3, 5)]), append((0, 0), Vec::new())] {
        assert_eq!(net.node(M2).driver.step(M1, G, sound), Ok(()));
    }
    net.pump();
    assert_eq!(net.status(M2).last, LogIndex(3));
}

#[test]
fn positions_are_taken_up_to_their_limits() {
    const MOST: u64 = 1 << 62;
    let mut net = Net::three(1);
    let (leader, term) = net.elect();
    let last = net.status(leader).last;
    let mut step = |to, from, message: RaftMessage| {
        let dropped = net.node(to).driver.step(from, G, message);
        net.pump();
        dropped
    };
    let beat = |commit| RaftMessage { commit, ..bare(MessageKind::Heartbeat, term) };
    assert_eq!(step(M2, M1, beat(last)), Ok(()));
    assert_eq!(step(M2, M1, beat(LogIndex(last.0 + 1))), Err(Dropped::Implausible));
    let answer = |index| RaftMessage { index, ..bare(MessageKind::AppendResponse, term) };
    assert_eq!(step(M1, M2, answer(last)), Ok(()));
    assert_eq!(step(M1, M2, answer(LogIndex(last.0 + 1))), Err(Dropped::Implausible));
    let read =
        |bytes| RaftMessage { context: vec![7; bytes].into(), ..bare(MessageKind::HeartbeatResponse, term) };
    assert_eq!(step(M1, M2, read(16)), Ok(()));
    assert_eq!(step(M1, M2, read(17)), Err(Dropped::Implausible));
    let asks =
        |term, index| RaftMessage { index: LogIndex(index), ..bare(MessageKind::RequestPreVote, Term(term)) };
    assert_eq!(step(M2, M3, asks(term.0, MOST)), Ok(()));
    assert_eq!(step(M2, M3, asks(term.0, MOST + 1)), Err(Dropped::Implausible));
    assert_eq!(step(M2, M3, asks(0, 0)), Err(Dropped::Implausible));
    assert_eq!(step(M2, M3, asks(MOST + 1, 0)), Err(Dropped::Implausible));
    assert_eq!(step(M2, M3, asks(MOST, 0)), Ok(()));
    assert_eq!(step(M2, M3, RaftMessage { priority: 1, ..asks(term.0, 0) }), Err(Dropped::Implausible));
}

#[test]
fn forged_snapshots_are_dropped() {
    const MOST: u64 = 1 << 62;
    let mut net = Net::three(1);
    net.elect();
    let snapshot = |index, term, voters: &[MemberId]| RaftMessage {
        snapshot: Some(SnapshotMeta { index: LogIndex(index), term: Term(term), voters: voters.to_vec() }),
        ..bare(MessageKind::Snapshot, Term(5))
    };
    let all = [M3, M1, M2];
    let driver = &mut net.node(M2).driver;
    for forged in [
        bare(MessageKind::Snapshot, Term(5)),
        snapshot(0, 5, &all),
        snapshot(MOST + 1, 5, &all),
        snapshot(9, 0, &all),
        snapshot(9, 6, &all),
        snapshot(9, 5, &[M1, M2]),
        snapshot(9, 5, &[M1, M2, MemberId(4)]),
    ] {
        let dropped = driver.step_snapshot(M1, G, forged.clone());
        assert_eq!(dropped, Err(Dropped::Implausible), "{forged:?}");
    }
    assert_eq!(driver.step(M1, G, snapshot(9, 5, &all)), Err(Dropped::Kind), "its rows are not here");
    assert_eq!(driver.step_snapshot(M1, G, snapshot(9, 5, &all)), Ok(()));
    let mut fx = Effects::default();
    driver.ready(&mut fx);
    driver.persisted(&mut fx);
    assert_eq!(fx.install.len(), 1);
    let status = driver.status().remove(0);
    assert!(status.rows_lost && status.first == LogIndex(10), "until its rows are installed");
    assert_eq!(driver.step(M1, G, bare(MessageKind::Heartbeat, Term(5))), Err(Dropped::Installing));
    driver.tick();
    driver.member_down(M1);
    let mut meanwhile = Effects::default();
    driver.ready(&mut meanwhile);
    driver.persisted(&mut meanwhile);
    assert!(meanwhile.send.is_empty() && meanwhile.send_early.is_empty(), "nothing goes on meanwhile");
    driver.installed(G, &mut fx);
    let status = driver.status().remove(0);
    assert!(!status.rows_lost && status.applied == LogIndex(9) && status.last == LogIndex(9));
}

#[test]
fn a_follower_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    let mut net = Net::three(3);
    let (leader, term) = net.elect();
    net.isolate(M3);
    net.tick(100);
    assert_eq!(net.status(M3).term, term, "it asked before it raised its term");
    net.heal();
    net.tick(30);
    assert_eq!(net.leader(), Some((leader, term)));
    assert_eq!(net.status(M3).leader, Some(leader));
}

#[test]
fn a_leader_that_hears_of_nobody_knows_that_it_leads_no_more() {
    let mut net = Net::three(3);
    let (leader, term) = net.elect();
    net.isolate(leader);
    net.tick(25);
    let status = net.status(leader);
    assert!(status.role != Role::Leader && !status.open && status.term == term);
}

#[test]
fn proposals_are_refused_once_too_much_is_uncommitted() {
    const MIB: usize = 1 << 20;
    let mut net = Net::three(5);
    let (leader, term) = net.elect();
    net.isolate(leader);
    let refused = |net: &mut Net| {
        net.pump();
        net.events(leader).into_iter().any(|e| matches!(e, EpochEvent::Refused { .. }))
    };
    let fits = (UNCOMMITTED_BYTES_MAX / (MIB / 2)) as u64;
    for n in 0..fits - 1 {
        net.propose_sized(leader, term, n, 1, MIB / 2);
    }
    assert!(!refused(&mut net));
    for n in fits - 1..fits + 1 {
        net.propose_sized(leader, term, n, 1, MIB / 2);
    }
    assert!(refused(&mut net));
}

#[test]
fn a_proposal_may_be_as_large_as_an_entry_and_not_larger() {
    for (size, taken) in [(ENTRY_BYTES_MAX, true), (ENTRY_BYTES_MAX + 1, false)] {
        let mut net = Net::three(6);
        let (leader, term) = net.elect();
        net.propose_sized(leader, term, 0, 1, size - 20);
        net.pump();
        assert_eq!(net.records(leader), u64::from(taken));
        let refused = EpochEvent::Refused { epoch: term, first_seq: RecordSeq(0) };
        assert_eq!(net.events(leader).contains(&refused), !taken);
    }
}

#[test]
fn a_refusal_is_told_once() {
    let mut net = Net::three(6);
    let (leader, term) = net.elect();
    net.events(leader);
    for first in [3, 0, 1] {
        net.propose(leader, term, first, 1);
    }
    let mut fx = Effects::default();
    net.node(leader).driver.ready(&mut fx);
    net.node(leader).driver.persisted(&mut fx);
    let refusals: Vec<_> =
        fx.events.iter().map(|(_, e)| e).filter(|e| matches!(e, EpochEvent::Refused { .. })).collect();
    assert_eq!(refusals, [&EpochEvent::Refused { epoch: term, first_seq: RecordSeq(0) }]);
}

#[test]
fn leadership_is_handed_over_only_by_the_leader_and_to_another_replica() {
    let mut net = Net::three(7);
    let (leader, term) = net.elect();
    net.tick(3);
    assert_eq!(leader, M1);
    for to in [M1, MemberId(9)] {
        assert!(!net.node(M1).driver.transfer(G, to));
    }
    assert!(!net.node(M2).driver.transfer(G, M3), "it does not lead");
    assert!(!net.node(M2).driver.transfer(G, M1));
    assert!(!net.node(M1).driver.transfer(GroupId::of(PartitionId(0)), M2));
    assert!(net.status(M1).open);
    assert!(net.node(M1).driver.transfer(G, M2));
    assert!(!net.node(M1).driver.transfer(G, M2), "it is under way");
    net.pump();
    let (next, newer) = net.leader().unwrap();
    assert!(next == M2 && newer > term);
}

#[test]
fn leadership_is_not_handed_to_a_member_that_is_silent_or_down() {
    let mut net = Net::three(7);
    let (_, term) = net.elect();
    net.tick(3);
    net.cut_one_way(M2, M1);
    let answer = bare(MessageKind::HeartbeatResponse, term);
    assert_eq!(net.node(M1).driver.step(M2, G, answer), Ok(()));
    net.tick(8);
    assert!(net.status(M1).followers[0].active, "silent for eight ticks");
    net.tick(1);
    assert!(!net.status(M1).followers[0].active, "and for one more");
    assert!(!net.node(M1).driver.transfer(G, M2));
    net.heal();
    net.tick(3);
    assert!(net.status(M1).followers[0].active);
    net.node(M1).driver.member_down(M2);
    assert!(!net.node(M1).driver.transfer(G, M2));
    net.tick(3);
    assert!(net.node(M1).driver.transfer(G, M2), "a message takes the hint back");
}

#[test]
fn the_death_of_a_follower_moves_no_leadership() {
    let mut net = Net::three(9);
    let (leader, term) = net.elect();
    net.kill(M3);
    for member in [M1, M2] {
        net.node(member).driver.member_down(M3);
    }
    net.tick(30);
    assert_eq!(net.leader(), Some((leader, term)));
}

#[test]
fn a_survivor_that_hears_of_a_new_leader_does_not_take_over() {
    let mut net = Net::three(10);
    net.elect();
    net.kill(M1);
    net.node(M3).driver.member_down(M1);
    net.node(M2).driver.member_down(M1);
    net.pump();
    let (leader, term) = net.leader().unwrap();
    assert_eq!(leader, M2);
    net.tick(30);
    assert_eq!(net.leader(), Some((leader, term)));
}

#[test]
fn status_says_where_a_group_stands() {
    let mut net = Net::three(11);
    let (leader, term) = net.elect();
    net.tick(3);
    net.cut_one_way(M1, M3);
    net.propose_sized(leader, term, 0, 1, 80);
    net.propose_sized(leader, term, 1, 1, 80);
    net.pump();
    let status = net.status(M1);
    let follower = |member, matched, lag| FollowerStatus {
        member,
        matched: LogIndex(matched),
        lag,
        active: true,
        snapshot: false,
    };
    let expected = GroupStatus {
        group: G,
        role: Role::Leader,
        leader: Some(M1),
        term,
        open: true,
        first: LogIndex(1),
        last: LogIndex(3),
        commit: LogIndex(3),
        applied: LogIndex(3),
        log_bytes: status.log_bytes,
        rows_lost: false,
        followers: vec![follower(M2, 3, 0), follower(M3, 1, 2)],
    };
    assert_eq!(status, expected);
    assert!((200..400).contains(&status.log_bytes));
    let status = net.status(M2);
    assert_eq!((status.role, status.leader, status.open), (Role::Follower, Some(M1), false));
    assert_eq!((status.followers, status.last), (Vec::new(), LogIndex(3)));
    net.node(M1).driver.member_down(M2);
    assert!(!net.status(M1).followers[0].active, "down is not active");
    // Poisoned, until the epoch is left.
    net.propose(leader, term, 9, 1);
    assert!(!net.status(M1).open);
}

#[test]
fn a_log_is_forgotten_only_as_far_as_it_was_applied_and_as_asked() {
    let mut net = Net::with(&[1, 2, 3], 12, |config| {
        config.log_keep_bytes = 0;
        config.log_tail_bytes_max = 1000;
    });
    let (leader, term) = net.elect();
    for n in 0..4 {
        net.propose_sized(leader, term, n, 1, 48);
    }
    net.tick(5);
    let (driver, applied) = (&mut net.node(M1).driver, LogIndex(5));
    assert_eq!(driver.truncate(GroupId::of(PartitionId(0)), applied, true), None);
    assert_eq!(driver.truncate(G, LogIndex(0), false), None);
    assert_eq!(driver.truncate(G, LogIndex(2), false), Some(Truncate { group: G, index: LogIndex(2), term }));
    assert_eq!(driver.truncate(G, LogIndex(2), false), None, "it is forgotten already");
    assert_eq!(driver.truncate(G, LogIndex(99), false).map(|t| t.index), Some(applied));
    assert_eq!(driver.status()[0].first, LogIndex(6));
}

#[test]
fn a_log_is_forgotten_by_force_whatever_it_keeps_for_others() {
    let mut net = Net::with(&[1, 2, 3], 12, |config| config.log_keep_bytes = 1 << 20);
    let (leader, term) = net.elect();
    net.tick(3);
    net.cut_one_way(leader, M3);
    net.propose(leader, term, 0, 1);
    net.tick(3);
    let driver = &mut net.node(leader).driver;
    assert_eq!(driver.truncate(G, LogIndex(2), false), None, "there is room for it");
    assert_eq!(driver.truncate(G, LogIndex(2), true).map(|t| t.index), Some(LogIndex(2)));
}

#[test]
fn a_tail_that_is_exactly_long_enough_is_kept_for_a_follower() {
    // Two entries of 20 + 48 bytes and what each costs beside, and the leader's empty one.
    for (tail_bytes_max, forgotten) in [(232, LogIndex(1)), (231, LogIndex(3))] {
        let tune: fn(&mut DriverConfig) = match tail_bytes_max {
            232 => |c| (c.log_keep_bytes, c.log_tail_bytes_max) = (0, 232),
            _ => |c| (c.log_keep_bytes, c.log_tail_bytes_max) = (0, 231),
        };
        let mut net = Net::with(&[1, 2, 3], 12, tune);
        let (leader, term) = net.elect();
        net.tick(3);
        net.cut_one_way(leader, M3);
        net.propose_sized(leader, term, 0, 1, 48);
        net.propose_sized(leader, term, 1, 1, 48);
        net.pump();
        assert_eq!(net.status(leader).log_bytes, 232);
        let truncate = net.node(leader).driver.truncate(G, LogIndex(3), false);
        assert_eq!(truncate.map(|t| t.index), Some(forgotten));
    }
}

#[test]
fn snapshots_to_one_member_go_one_after_the_other() {
    let other = GroupId::of(PartitionId(3));
    let mut net = Net::with_groups(&[1, 2, 3], &[G, other], 12, small_log);
    let (leader, term) = net.elect();
    net.kill(M3);
    for group in [G, other] {
        for n in 0..40 {
            let (first_seq, data) = (RecordSeq(n), entry(term, RecordSeq(n), 1, 100));
            let proposal = Proposal { group, epoch: term, first_seq, records: 1, data };
            net.node(leader).driver.propose(proposal);
        }
    }
    net.pump();
    net.tick(12);
    for group in [G, other] {
        assert!(net.checkpoint_of(leader, group).is_some());
    }
    net.trace.clear();
    net.restart(M3);
    net.tick(30);
    for group in [G, other] {
        assert_eq!(net.node(M3).machines[&group].records, 40);
    }
    let mut under_way = None;
    let mut sent = 0;
    for line in &net.trace {
        let words: Vec<_> = line.split(' ').collect();
        if words[0] == format!("{leader}->{M3}") {
            if words[2] == "Snapshot" {
                assert!(under_way.is_none_or(|group| group == words[1]), "two at once: {line}");
                (under_way, sent) = (Some(words[1].to_owned()), sent + 1);
            }
        } else if words[2] == "AppendResponse" && under_way.as_deref() == Some(words[1]) {
            under_way = None;
        }
    }
    assert!((2..5).contains(&sent), "each was sent, and hardly one twice: {sent}");
}

#[test]
fn a_restarted_node_applies_only_what_its_rows_lack() {
    let mut net = Net::three(2);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 4);
    net.tick(3);
    for member in [M1, M2, M3] {
        assert_eq!(net.checkpoint(member), None, "the log is kept");
    }
    net.propose(leader, term, 4, 2);
    net.tick(3);
    for member in [M1, M2, M3] {
        net.kill(member);
    }
    for member in [M1, M2, M3] {
        net.restart(member);
        assert_eq!(net.status(member).applied, LogIndex(2));
    }
    net.pump();
    net.elect();
    net.tick(3);
    for member in [M1, M2, M3] {
        assert_eq!((net.records(member), net.gaps(member)), (6, &[][..]));
    }
}

#[test]
fn who_leads_is_told_when_it_changes_and_only_then() {
    let mut net = Net::three(9);
    let (leader, term) = net.elect();
    let told = |net: &mut Net, member| {
        let mut told = net.events(member);
        told.retain(|e| matches!(e, EpochEvent::LeaderIs { .. }));
        told
    };
    for member in [M1, M2, M3] {
        let told = told(&mut net, member);
        assert_eq!(told.last(), Some(&EpochEvent::LeaderIs { leader: Some(leader), term }));
        assert_eq!(told.iter().filter(|e| **e == told[told.len() - 1]).count(), 1);
    }
    net.propose(leader, term, 0, 1);
    net.tick(10);
    assert!(told(&mut net, M2).is_empty());
}

#[test]
fn leadership_follows_a_change_of_the_order() {
    let mut net = Net::three(11);
    net.elect();
    for member in [M1, M2, M3] {
        net.node(member).driver.set_preferred(G, vec![M3, M1, M2]);
    }
    net.tick(19);
    assert_eq!(net.leader().map(|l| l.0), Some(M1), "not before it has been well for a while");
    net.tick(2);
    assert_eq!(net.leader().map(|l| l.0), Some(M3));
}

#[test]
fn a_replica_without_rows_does_not_campaign_when_it_is_told_to() {
    let mut net = Net::three(14);
    let (leader, term) = net.elect();
    net.propose(leader, term, 0, 5);
    net.tick(3);
    net.restart_without_rows(M2);
    let now = bare(MessageKind::TimeoutNow, term);
    assert_eq!(net.node(M2).driver.step(M1, G, now.clone()), Err(Dropped::Kind));
    assert_eq!(net.node(M3).driver.step(M1, G, now), Ok(()));
    net.pump();
    assert_eq!(net.leader().map(|l| l.0), Some(M3));
}

#[test]
fn a_poisoned_leader_lets_a_hand_over_finish() {
    let mut net = Net::three(5);
    let (leader, term) = net.elect();
    net.tick(3);
    assert_eq!(leader, M1);
    assert!(net.node(M1).driver.transfer(G, M3));
    net.propose(M1, term, 0, 1);
    assert!(net.events(M1).iter().all(|e| !matches!(e, EpochEvent::Closed { .. })));
    net.pump();
    assert_eq!(net.leader(), Some((M3, Term(term.0 + 1))), "no second election");
}

#[test]
fn a_follower_whose_messages_were_lost_is_probed_before_it_gets_more() {
    for hint in [false, true] {
        let mut net = Net::three(5);
        let (leader, term) = net.elect();
        net.tick(3);
        if hint {
            net.node(leader).driver.unreachable(M2);
        }
        net.trace.clear();
        for n in 0..3 {
            net.propose(leader, term, n, 1);
            net.run(leader);
        }
        let to_it =
            |line: &&String| line.starts_with(&format!("{leader}->{M2} ")) && line.contains(" Append ");
        assert_eq!(net.trace.iter().filter(to_it).count(), if hint { 1 } else { 3 });
        net.pump();
        net.tick(3);
        assert_eq!(net.records(M2), 3);
    }
}

#[test]
fn a_snapshot_under_way_is_not_taken_for_received_when_another_group_answers() {
    let [second, whole] = [3, 4].map(|n| GroupId::of(PartitionId(n)));
    let mut net = Net::with_groups(&[1, 2, 3], &[G, second, whole], 12, small_log);
    let (leader, term) = net.elect();
    net.kill(M3);
    let propose = |net: &mut Net, group, n| {
        let (first_seq, data) = (RecordSeq(n), entry(term, RecordSeq(n), 1, 100));
        net.node(leader).driver.propose(Proposal { group, epoch: term, first_seq, records: 1, data });
    };
    for group in [G, second] {
        (0..40).for_each(|n| propose(&mut net, group, n));
    }
    net.pump();
    net.tick(12);
    for group in [G, second] {
        assert!(net.checkpoint_of(leader, group).is_some());
    }
    net.restart(M3);
    net.trace.clear();
    let sent = |net: &Net| net.trace.iter().filter(|line| line.contains(" Snapshot ")).count();
    while sent(&net) == 0 {
        net.node(leader).driver.tick();
        while sent(&net) == 0 && net.single_step() {}
    }
    assert_eq!(sent(&net), 1);
    net.cut_one_way(leader, M3);
    net.pump();
    net.heal();
    propose(&mut net, whole, 0);
    net.tick(20);
    assert_eq!(net.node(M3).machines[&whole].records, 1);
    assert_eq!(sent(&net), 1, "the first may still be on its way");
    net.tick(250);
    for group in [G, second] {
        assert_eq!(net.node(M3).machines[&group].records, 40, "in the end it is sent again");
    }
}

#[test]
fn leaderships_go_home_one_after_the_other() {
    let second = GroupId::of(PartitionId(3));
    let mut net = Net::with_groups(&[1, 2, 3], &[G, second], 11, |_| {});
    net.elect();
    net.kill(M1);
    for member in [M2, M3] {
        net.node(member).driver.member_down(M1);
    }
    net.pump();
    net.restart(M1);
    net.tick(80);
    assert!(net.node(M1).driver.status().iter().all(|s| s.role == Role::Leader && s.open));
    let events = std::mem::take(&mut net.node(M2).events);
    let told = |group, wanted: fn(&EpochEvent) -> bool| {
        events.iter().position(|(of, event)| *of == group && wanted(event)).unwrap()
    };
    let begun = |group| told(group, |e| matches!(e, EpochEvent::Transferring { .. }));
    let over = |group| told(group, |e| matches!(e, EpochEvent::Closed { .. }));
    assert!(over(G) < begun(second) || over(second) < begun(G));
}

#[test]
fn an_event_is_work_to_do() {
    let mut driver = Driver::new(DriverConfig::new(M1, 0));
    assert!(!driver.has_work());
    let proposal =
        Proposal { group: G, epoch: Term(1), first_seq: RecordSeq(0), records: 1, data: Bytes::new() };
    driver.propose(proposal);
    assert!(driver.has_work());
    let mut fx = Effects::default();
    driver.ready(&mut fx);
    driver.persisted(&mut fx);
    assert_eq!(fx.events, [(G, EpochEvent::Refused { epoch: Term(1), first_seq: RecordSeq(0) })]);
    assert!(!driver.has_work());
}

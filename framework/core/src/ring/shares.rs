//! Fair shares: how many replicas and leaderships a member may have.
//!
//! Whole-number arithmetic only: every build has to get the same table.

/// Most replicas of each member: its share by weight plus slack, rounded up, at most one per
/// partition. A member whose share reaches that is set aside, and the others share the rest.
///
/// Invariant: the sum of the results is at least `partitions · replicas`.
pub(super) fn load_max(
    weights: &[u64],
    partitions: usize,
    replicas: usize,
    slack_percent: u32,
) -> Vec<usize> {
    let partitions = partitions as u64;
    let mut heaviest_first: Vec<usize> = (0..weights.len()).collect();
    heaviest_first.sort_by_key(|&at| std::cmp::Reverse(weights[at]));

    let mut load_max = vec![0; weights.len()];
    let mut due = partitions * replicas as u64;
    let mut weight_sum: u64 = weights.iter().sum();
    let mut saturated = true;
    for at in heaviest_first {
        let weighted = due * weights[at];
        saturated = saturated && weighted >= partitions * weight_sum;
        load_max[at] = if saturated {
            due -= partitions;
            weight_sum -= weights[at];
            partitions as usize
        } else {
            let with_slack = weighted * (100 + u64::from(slack_percent));
            with_slack.div_ceil(100 * weight_sum).min(partitions) as usize
        };
    }
    load_max
}

/// How many partitions each member leads: its share by weight, rounded so that the sum is
/// `partitions` (largest remainder first, then lowest number).
pub(super) fn quotas(weights: &[u64], partitions: usize) -> Vec<usize> {
    let weight_sum: u64 = weights.iter().sum();
    let weighted = |at: usize| partitions as u64 * weights[at];
    let mut quotas: Vec<usize> = (0..weights.len()).map(|at| (weighted(at) / weight_sum) as usize).collect();

    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|&at| std::cmp::Reverse(weighted(at) % weight_sum));
    let missing = partitions - quotas.iter().sum::<usize>();
    for &at in &by_remainder[..missing] {
        quotas[at] += 1;
    }
    quotas
}

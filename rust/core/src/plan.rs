//! What to freeze and in which order, once per superblock, and what to leave out and why.

mod error;
mod filesystems;
mod levels;
mod skip_reason;
mod superblocks;

pub use error::PlanError;
pub use filesystems::{PlannedFilesystem, SkippedFilesystem};
pub use skip_reason::SkipReason;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::device_number::DeviceNumber;
use crate::devices::DeviceGraph;
use crate::mountinfo::{MountNamespace, MountTree};
use crate::pattern::{Pattern, PatternError, Subject};
use crate::text::path_text;
use levels::levels;
use superblocks::superblocks;

/// The filesystems that the caller selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// If there are any, the run freezes only filesystems that one of these matches.
    pub include: Vec<Pattern>,
    /// The run does not freeze a filesystem that one of these matches, even if `include` matches
    /// it.
    pub exclude: Vec<Pattern>,
    /// The run does not freeze the filesystems with these device numbers either.
    pub excluded_devices: BTreeSet<DeviceNumber>,
    /// Exclude patterns that could not be parsed, if the caller ignores those.
    pub unusable_excludes: Vec<PatternError>,
}

impl Selection {
    /// Parses include and exclude patterns.
    ///
    /// # Errors
    ///
    /// [`PlanError::BadPattern`] for the first pattern that cannot be parsed.
    pub fn parse(include: &[String], exclude: &[String]) -> Result<Self, PlanError> {
        let all = |texts: &[String]| -> Result<Vec<_>, PatternError> {
            texts.iter().map(|text| Pattern::parse(text)).collect()
        };
        Ok(Self {
            include: all(include)?,
            exclude: all(exclude)?,
            ..Self::default()
        })
    }

    /// Parses include and exclude patterns, and ignores exclude patterns that cannot be parsed. It
    /// stores those in `unusable_excludes`.
    ///
    /// # Errors
    ///
    /// [`PlanError::BadPattern`] for the first include pattern that cannot be parsed.
    pub fn parse_leniently(include: &[String], exclude: &[String]) -> Result<Self, PlanError> {
        let mut selection = Self::parse(include, &[])?;
        for text in exclude {
            match Pattern::parse(text) {
                Ok(pattern) => selection.exclude.push(pattern),
                Err(error) => selection.unusable_excludes.push(error),
            }
        }
        Ok(selection)
    }
}

/// What a run will freeze, in freeze order, and what it leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What the run freezes, ordered by level and then as in mountinfo.
    pub filesystems: Vec<PlannedFilesystem>,
    /// What the run leaves out, in the order of mountinfo.
    pub skipped: Vec<SkippedFilesystem>,
    /// Exclude patterns that matched nothing. They deserve a warning, not an error.
    pub unmatched_excludes: Vec<String>,
    /// Exclude patterns that could not be parsed and were ignored. They are not in the JSON,
    /// because the command line refuses them.
    #[serde(skip)]
    pub unusable_excludes: Vec<PatternError>,
}

impl Plan {
    /// Decides what to freeze from the list of mounts. It accesses none of them.
    ///
    /// The first of `namespaces` is our own. A later one counts only for superblocks that are
    /// harder to reach in the namespaces before it.
    ///
    /// # Errors
    ///
    /// [`PlanError`] if an include pattern matches nothing, or names one mount that cannot be
    /// frozen. An exclude pattern that matches nothing is no error but is listed, because the
    /// filesystem that it should keep out is not there.
    pub fn make(
        namespaces: &[MountNamespace],
        devices: &DeviceGraph,
        selection: &Selection,
    ) -> Result<Self, PlanError> {
        let superblocks = superblocks(namespaces);
        let subjects: Vec<Subject<'_>> = superblocks
            .iter()
            .map(|superblock| superblock.subject(devices, &superblock.mounts))
            .collect();
        let mut skip: Vec<Option<SkipReason>> = superblocks
            .iter()
            .map(|superblock| superblock.why_impossible())
            .collect();

        let mut unmatched_excludes: Vec<&Pattern> = selection.exclude.iter().collect();
        let mut is_excluded = vec![false; superblocks.len()];
        for ((superblock, skip), is_excluded) in
            superblocks.iter().zip(&mut skip).zip(&mut is_excluded)
        {
            let subject = superblock.subject(devices, &superblock.whole());
            for pattern in selection
                .exclude
                .iter()
                .filter(|pattern| pattern.matches(&subject))
            {
                *is_excluded = true;
                unmatched_excludes.retain(|unmatched| *unmatched != pattern);
                skip.get_or_insert_with(|| SkipReason::Excluded {
                    pattern: pattern.text().to_owned(),
                });
            }
        }
        for ((superblock, skip), is_excluded) in
            superblocks.iter().zip(&mut skip).zip(&mut is_excluded)
        {
            let device = superblock.primary.device;
            if selection.excluded_devices.contains(&device) {
                *is_excluded = true;
                skip.get_or_insert(SkipReason::ExcludedDevice { device });
            }
        }
        for pattern in &selection.include {
            let mut matched = superblocks
                .iter()
                .zip(&skip)
                .zip(&is_excluded)
                .zip(&subjects)
                .filter(|(_, subject)| pattern.matches(subject))
                .map(|(rest, _)| rest)
                .peekable();
            if matched.peek().is_none() {
                return Err(matches_nothing(pattern, namespaces));
            }
            // Several superblocks can be mounted on top of each other at a path. It is an error
            // only if none of them can be frozen. The error names the last one, which is visible
            // there.
            let mut refused = None;
            for ((superblock, skip), is_excluded) in matched {
                match skip {
                    Some(reason) if !is_excluded => refused = Some((superblock, reason)),
                    _ => {
                        refused = None;
                        break;
                    }
                }
            }
            if let Some((superblock, reason)) = refused.filter(|_| pattern.is_literal()) {
                return Err(PlanError::NotFreezable {
                    pattern: pattern.text().to_owned(),
                    filesystem_type: superblock.primary.filesystem_type.clone(),
                    reason: reason.clone(),
                });
            }
        }
        if !selection.include.is_empty() {
            for (subject, skip) in subjects.iter().zip(&mut skip) {
                if !selection
                    .include
                    .iter()
                    .any(|pattern| pattern.matches(subject))
                {
                    skip.get_or_insert(SkipReason::NotIncluded);
                }
            }
        }

        let mut plan = Self {
            unmatched_excludes: unmatched_excludes
                .iter()
                .map(|pattern| pattern.text().to_owned())
                .collect(),
            unusable_excludes: selection.unusable_excludes.clone(),
            ..Self::default()
        };
        let mut planned = Vec::new();
        for (superblock, skip) in superblocks.iter().zip(skip) {
            match skip {
                Some(reason) => plan.skipped.push(superblock.skipped(reason)),
                None => planned.push(superblock),
            }
        }
        let levels = levels(&superblocks, &planned, namespaces, devices);
        plan.filesystems = planned
            .iter()
            .map(|superblock| {
                superblock.planned(levels.get(&superblock.primary.device).copied().unwrap_or(0))
            })
            .collect();
        // The sort is stable, so a level stays in the order of mountinfo.
        plan.filesystems.sort_by_key(|filesystem| filesystem.level);
        Ok(plan)
    }

    /// Returns this plan with nothing to freeze. The planned filesystems move to the end of
    /// `skipped`.
    #[must_use]
    pub fn without_filesystems(&self) -> Self {
        let left_out = self.filesystems.iter().map(|planned| SkippedFilesystem {
            mount_point: planned.mount_point.clone(),
            device: planned.device,
            source: planned.source.clone(),
            filesystem_type: planned.filesystem_type.clone(),
            reason: SkipReason::FreezeNotWanted,
        });
        Self {
            filesystems: Vec::new(),
            skipped: self.skipped.iter().cloned().chain(left_out).collect(),
            unmatched_excludes: self.unmatched_excludes.clone(),
            unusable_excludes: self.unusable_excludes.clone(),
        }
    }
}

fn matches_nothing(pattern: &Pattern, namespaces: &[MountNamespace]) -> PlanError {
    let Some(path) = pattern.literal_mount_point() else {
        return PlanError::PatternMatchesNothing {
            pattern: pattern.text().to_owned(),
        };
    };
    let own_mounts = namespaces
        .first()
        .map_or(&[][..], |namespace| &namespace.mounts);
    let lies_on = MountTree::new(own_mounts)
        .way_to(path)
        .last()
        .map(|mount| path_text(&mount.mount_point));
    PlanError::NoSuchMount {
        path: path_text(path),
        lies_on,
    }
}

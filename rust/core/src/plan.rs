//! What to freeze and in which order, once per superblock, and what to leave out and why.

mod error;
mod filesystems;
mod levels;
mod skip_reason;
mod superblocks;

pub use error::PlanError;
pub use filesystems::{open_path, PlannedFilesystem, SkippedFilesystem, UnreadableMounts};
pub use skip_reason::SkipReason;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::device_number::DeviceNumber;
use crate::devices::DeviceGraph;
use crate::mount_tree::MountTree;
use crate::mountinfo::MountNamespace;
use crate::pattern::{Pattern, PatternError, Subject};
use crate::text::path_text;
use levels::levels;
use superblocks::{superblocks, Superblock};

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
    /// What could not be read about the mounts. A run of this plan is not called consistent if there
    /// is anything.
    pub unreadable_mounts: Vec<UnreadableMounts>,
    /// Exclude patterns that matched nothing. They deserve a warning, not an error.
    pub unmatched_excludes: Vec<String>,
    /// Exclude patterns that could not be parsed and were ignored. They are not in the JSON,
    /// because the command line refuses them.
    #[serde(skip)]
    pub unusable_excludes: Vec<PatternError>,
    /// What the plan was made for, to make it again when the world has changed. `None` if the run is
    /// to freeze nothing.
    #[serde(skip)]
    selection: Option<Selection>,
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
        Self::make_for(namespaces, devices, selection, true)
    }

    /// Makes the plan again, for what is mounted now. An include pattern that matches nothing any
    /// more is no error.
    ///
    /// A plan that has nothing to freeze stays so.
    ///
    /// # Errors
    ///
    /// None of those that [`Plan::make`] has for patterns.
    pub fn make_again(
        &self,
        namespaces: &[MountNamespace],
        devices: &DeviceGraph,
    ) -> Result<Self, PlanError> {
        match &self.selection {
            Some(selection) if !self.filesystems.is_empty() => {
                Self::make_for(namespaces, devices, selection, false)
            }
            Some(_) | None => Ok(self.clone()),
        }
    }

    fn make_for(
        namespaces: &[MountNamespace],
        devices: &DeviceGraph,
        selection: &Selection,
        checks_includes: bool,
    ) -> Result<Self, PlanError> {
        let superblocks = superblocks(namespaces);
        let mut candidates: Vec<Candidate<'_>> = superblocks
            .iter()
            .map(|superblock| Candidate {
                superblock,
                subject: superblock.subject(devices, &superblock.mounts),
                skip: superblock.why_impossible(),
                is_excluded: false,
            })
            .collect();
        let unmatched_excludes = exclude(&mut candidates, &selection.exclude, devices);
        exclude_devices(&mut candidates, &selection.excluded_devices);
        for candidate in &mut candidates {
            if candidate.skip.is_none() {
                candidate.skip = candidate.superblock.why_out_of_reach();
            }
        }
        for pattern in selection.include.iter().filter(|_| checks_includes) {
            check_include(pattern, &candidates, namespaces)?;
        }
        if !selection.include.is_empty() {
            leave_out_the_rest(&mut candidates, &selection.include);
        }

        let mut plan = Self {
            unmatched_excludes,
            unusable_excludes: selection.unusable_excludes.clone(),
            selection: Some(selection.clone()),
            ..Self::default()
        };
        let mut planned = Vec::new();
        let mut explicit = BTreeSet::new();
        for candidate in candidates {
            match candidate.skip {
                Some(reason) => plan.skipped.push(candidate.superblock.skipped(reason)),
                None => {
                    planned.push(candidate.superblock);
                    let names_it = |pattern: &Pattern| {
                        pattern.is_literal() && pattern.matches(&candidate.subject)
                    };
                    if selection.include.iter().any(names_it) {
                        explicit.insert(candidate.superblock.primary.device);
                    }
                }
            }
        }
        let levels = levels(&superblocks, &planned, namespaces, devices);
        plan.filesystems = planned
            .iter()
            .map(|superblock| {
                let device = &superblock.primary.device;
                let level = levels.get(device).copied().unwrap_or(0);
                superblock.planned(level, explicit.contains(device))
            })
            .collect();
        // The sort is stable, so a level stays in the order of mountinfo.
        plan.filesystems.sort_by_key(|filesystem| filesystem.level);
        Ok(plan)
    }

    /// Returns this plan with nothing to freeze. The planned filesystems move to the end of
    /// `skipped`. What could not be read about the mounts does not matter to it.
    #[must_use]
    pub fn without_filesystems(&self) -> Self {
        let left_out = self.filesystems.iter().map(|planned| SkippedFilesystem {
            mount_point: planned.mount_point.clone(),
            device: planned.device,
            source: planned.source.clone(),
            filesystem_type: planned.filesystem_type.clone(),
            reason: SkipReason::FreezeNotWanted,
        });
        let skipped = self.skipped.iter().cloned().map(|skipped| match skipped {
            skipped if skipped.reason.is_out_of_reach() => SkippedFilesystem {
                reason: SkipReason::FreezeNotWanted,
                ..skipped
            },
            skipped => skipped,
        });
        Self {
            filesystems: Vec::new(),
            skipped: skipped.chain(left_out).collect(),
            unreadable_mounts: Vec::new(),
            unmatched_excludes: self.unmatched_excludes.clone(),
            unusable_excludes: self.unusable_excludes.clone(),
            selection: None,
        }
    }
}

/// A superblock while the plan is made.
struct Candidate<'a> {
    superblock: &'a Superblock<'a>,
    /// What include patterns match against. It has all mounts of the superblock.
    subject: Subject<'a>,
    /// Why it is left out, or `None` as long as no reason is known.
    skip: Option<SkipReason>,
    /// Whether the selection excludes it. `skip` may still be another reason.
    is_excluded: bool,
}

/// Leaves out what an exclude pattern matches. Returns the patterns that match nothing.
fn exclude(
    candidates: &mut [Candidate<'_>],
    patterns: &[Pattern],
    devices: &DeviceGraph,
) -> Vec<String> {
    let mut unmatched: Vec<&Pattern> = patterns.iter().collect();
    for candidate in candidates {
        let superblock = candidate.superblock;
        let subject = superblock.subject(devices, &superblock.whole());
        for pattern in patterns.iter().filter(|pattern| pattern.matches(&subject)) {
            candidate.is_excluded = true;
            unmatched.retain(|other| *other != pattern);
            candidate.skip.get_or_insert_with(|| SkipReason::Excluded {
                pattern: pattern.text().to_owned(),
            });
        }
    }
    unmatched
        .iter()
        .map(|pattern| pattern.text().to_owned())
        .collect()
}

/// Leaves out the excluded devices.
fn exclude_devices(candidates: &mut [Candidate<'_>], excluded: &BTreeSet<DeviceNumber>) {
    for candidate in candidates {
        let device = candidate.superblock.primary.device;
        if excluded.contains(&device) {
            candidate.is_excluded = true;
            candidate
                .skip
                .get_or_insert(SkipReason::ExcludedDevice { device });
        }
    }
}

/// Checks that an include pattern matches something, and that it can be frozen if the pattern names
/// one mount.
fn check_include(
    pattern: &Pattern,
    candidates: &[Candidate<'_>],
    namespaces: &[MountNamespace],
) -> Result<(), PlanError> {
    let mut matched = candidates
        .iter()
        .filter(|candidate| pattern.matches(&candidate.subject))
        .peekable();
    if matched.peek().is_none() {
        return Err(matches_nothing(pattern, namespaces));
    }
    if !pattern.is_literal() {
        return Ok(());
    }
    // Several superblocks can be mounted on top of each other at this path. That is an error only if
    // none of them can be frozen. The last one is visible there, so the error names it.
    let mut refused = None;
    for candidate in matched {
        match &candidate.skip {
            Some(reason) if !candidate.is_excluded => refused = Some((candidate, reason)),
            Some(_) | None => return Ok(()),
        }
    }
    match refused {
        Some((candidate, reason)) => Err(PlanError::NotFreezable {
            pattern: pattern.text().to_owned(),
            filesystem_type: candidate.superblock.primary.filesystem_type.clone(),
            reason: reason.clone(),
        }),
        None => Ok(()),
    }
}

/// Leaves out what no include pattern matches.
fn leave_out_the_rest(candidates: &mut [Candidate<'_>], include: &[Pattern]) {
    for candidate in candidates {
        let subject = &candidate.subject;
        let could_be_left_in = candidate
            .skip
            .as_ref()
            .is_none_or(SkipReason::is_out_of_reach);
        if could_be_left_in && !include.iter().any(|pattern| pattern.matches(subject)) {
            candidate.skip = Some(SkipReason::NotIncluded);
        }
    }
}

/// Why an include pattern matches nothing.
fn matches_nothing(pattern: &Pattern, namespaces: &[MountNamespace]) -> PlanError {
    let Some(path) = pattern.literal_mount_point() else {
        return PlanError::PatternMatchesNothing {
            pattern: pattern.text().to_owned(),
        };
    };
    let lies_on = namespaces.first().and_then(|own| {
        let tree = MountTree::new(own);
        let (mount, _) = tree.end_of(path)?;
        Some(path_text(&mount.mount_point))
    });
    PlanError::NoSuchMount {
        path: path_text(path),
        lies_on,
    }
}

package store

import (
	"context"
	"encoding/json"
	"math"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
)

// Settings hold for the whole cluster.
type Settings struct {
	MaxVersions     uint32 // of secrets created from now on
	StateLimitBytes uint64
	WireRecovery    bool // recovery shares in the clear on the SPIKE wire
	IndexReads      bool // reads of level index
	Index           uint64

	ArchiveSnapshotSeconds uint64 // age at which a snapshot has a successor; 0: as each peer is configured
	ArchiveDrillSeconds    uint64 // between two drills; 0: never
	Retention              Retention
}

// levelOfCare is the format level that has settings of the archive.
const levelOfCare = 3

// defaultDrillSeconds is the time between two drills unless a setting says otherwise.
const defaultDrillSeconds = 24 * 3600

// SettingsChange names the settings to change; nil leaves one as it is.
type SettingsChange struct {
	MaxVersions     *uint32
	StateLimitBytes *uint64
	WireRecovery    *bool
	IndexReads      *bool

	ArchiveSnapshotSeconds, ArchiveDrillSeconds                 *uint64
	KeepHourly, KeepDaily, KeepWeekly, KeepMonthly, KeepMinimum *uint32
}

// minStateLimit keeps a slip of the pen (a limit in MiB) from refusing every write.
const minStateLimit = 1 << 20

// GetSettings reads the settings: for superusers, admins and operators.
func (s *Store) GetSettings(ctx context.Context, r Request) (Settings, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.only(ctx, r, "settings.get", false, secret.RoleSuperuser, secret.RoleAdmin, secret.RoleOperator); err != nil {
		return Settings{}, err
	}
	p, err := s.fresh(ctx)
	if err != nil {
		return Settings{}, err
	}
	r.saw(p.view.Index())
	return settingsOf(p.view.Settings(), p.view.Index()), nil
}

func settingsOf(pb *fsmpb.Settings, index uint64) Settings {
	s := Settings{MaxVersions: pb.MaxVersions, StateLimitBytes: pb.StateLimitBytes, WireRecovery: pb.WireRecovery, IndexReads: pb.IndexReads, Index: index, ArchiveDrillSeconds: defaultDrillSeconds}
	if c := pb.Archive; c != nil {
		s.ArchiveSnapshotSeconds = c.SnapshotSeconds
		set(&s.ArchiveDrillSeconds, c.DrillSeconds)
		s.Retention = Retention{c.Hourly, c.Daily, c.Weekly, c.Monthly, c.Minimum}
	}
	return s
}

// PutSettings changes settings: for superusers, by their role alone. Of two at
// once both take effect, unless they change the same setting.
func (s *Store) PutSettings(ctx context.Context, r Request, want SettingsChange) (Settings, error) {
	request, err := json.Marshal(want)
	if err != nil {
		return Settings{}, err
	}
	var made *fsmpb.Settings
	result, err := s.change(ctx, r, change{
		op: "settings.put", fingerprint: [][]byte{request}, again: true,
		acts:     []act{{op: "settings.put", role: secret.RoleSuperuser}},
		validate: func() error { return want.validate() },
		build: func(p *published, _ *fsmpb.Current) (*fsmpb.Command, error) {
			old := p.view.Settings()
			if want.ofArchive() && p.view.Level() < levelOfCare {
				return nil, &secret.Error{Code: secret.CodeConflict, Subject: "level", Reason: "level_too_low",
					Message: "settings of the archive take a newer format level, which comes by itself within seconds once every member runs a release that knows it; see 'spikectl status', and ask again"}
			}
			made = &fsmpb.Settings{MaxVersions: old.MaxVersions, StateLimitBytes: old.StateLimitBytes, SecretLimitBytes: old.SecretLimitBytes,
				WireRecovery: old.WireRecovery, IndexReads: old.IndexReads, WindowEntries: old.WindowEntries, WindowBytes: old.WindowBytes, Archive: want.care(old.Archive)}
			set(&made.MaxVersions, want.MaxVersions)
			set(&made.StateLimitBytes, want.StateLimitBytes)
			set(&made.WireRecovery, want.WireRecovery)
			set(&made.IndexReads, want.IndexReads)
			return &fsmpb.Command{Op: &fsmpb.Command_PutSettings{PutSettings: &fsmpb.PutSettings{
				ExpectedRevision: p.view.SettingsRevision(), Settings: made}}}, nil
		},
	})
	if err != nil {
		return Settings{}, err
	}
	return settingsOf(made, result.Index), nil
}

// care is the care of the archive as it is to be; nil when none of it was ever set.
func (c SettingsChange) care(old *fsmpb.ArchiveCare) *fsmpb.ArchiveCare {
	if !c.ofArchive() {
		return old
	}
	made := &fsmpb.ArchiveCare{SnapshotSeconds: old.GetSnapshotSeconds(), Hourly: old.GetHourly(), Daily: old.GetDaily(), Weekly: old.GetWeekly(), Monthly: old.GetMonthly(), Minimum: old.GetMinimum()}
	if old != nil {
		made.DrillSeconds = old.DrillSeconds
	}
	if c.ArchiveDrillSeconds != nil {
		made.DrillSeconds = c.ArchiveDrillSeconds
	}
	set(&made.SnapshotSeconds, c.ArchiveSnapshotSeconds)
	set(&made.Hourly, c.KeepHourly)
	set(&made.Daily, c.KeepDaily)
	set(&made.Weekly, c.KeepWeekly)
	set(&made.Monthly, c.KeepMonthly)
	set(&made.Minimum, c.KeepMinimum)
	return made
}

func (c SettingsChange) ofArchive() bool {
	return c.ArchiveSnapshotSeconds != nil || c.ArchiveDrillSeconds != nil || c.KeepHourly != nil || c.KeepDaily != nil || c.KeepWeekly != nil || c.KeepMonthly != nil || c.KeepMinimum != nil
}

func set[T any](at *T, to *T) {
	if to != nil {
		*at = *to
	}
}

func (c SettingsChange) validate() error {
	switch {
	case c == SettingsChange{}:
		return secret.Invalid("settings", "none is named")
	case c.MaxVersions != nil && (*c.MaxVersions == 0 || *c.MaxVersions > fsm.MaxVersions):
		return secret.Invalid("max_versions", "it is a number from 1 to 1000")
	case c.StateLimitBytes != nil && (*c.StateLimitBytes < minStateLimit || *c.StateLimitBytes > math.MaxInt64):
		return secret.Invalid("state_limit_bytes", "it is at least 1048576")
	}
	for _, seconds := range []*uint64{c.ArchiveSnapshotSeconds, c.ArchiveDrillSeconds} {
		if seconds != nil && *seconds > fsm.MaxCareSeconds {
			return secret.Invalid("archive", "snapshots and drills are at most ten years apart")
		}
	}
	for _, count := range []*uint32{c.KeepHourly, c.KeepDaily, c.KeepWeekly, c.KeepMonthly, c.KeepMinimum} {
		if count != nil && *count > fsm.MaxRetention {
			return secret.Invalid("retention", "at most 100000 snapshots of a kind are kept")
		}
	}
	return nil
}

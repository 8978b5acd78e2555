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
}

// SettingsChange names the settings to change; nil leaves one as it is.
type SettingsChange struct {
	MaxVersions     *uint32
	StateLimitBytes *uint64
	WireRecovery    *bool
	IndexReads      *bool
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
	return Settings{pb.MaxVersions, pb.StateLimitBytes, pb.WireRecovery, pb.IndexReads, index}
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
			made = &fsmpb.Settings{MaxVersions: old.MaxVersions, StateLimitBytes: old.StateLimitBytes, SecretLimitBytes: old.SecretLimitBytes,
				WireRecovery: old.WireRecovery, IndexReads: old.IndexReads, WindowEntries: old.WindowEntries, WindowBytes: old.WindowBytes}
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
	return nil
}

package store_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// What is done with the archive is the superuser's alone, by his role, and on record before and after.
func TestArchiveIsAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.allow("all", "spike/", secret.Super|secret.Write|secret.Read)
	operator := store.Request{Caller: secret.Caller{ID: "spiffe://example.org/op", Role: secret.RoleOperator}}
	var out bytes.Buffer
	begin := func(int64) (io.Writer, error) { return &out, nil }
	acts := map[string]func(store.Request) error{
		"snapshot.save":   func(r store.Request) error { _, err := w.SaveSnapshot(ctx, r, [16]byte{1}); return err },
		"snapshot.drill":  func(r store.Request) error { _, err := w.DrillArchive(ctx, r, [16]byte{1}); return err },
		"snapshot.export": func(r store.Request) error { return w.ExportSnapshot(ctx, r, begin) },
	}
	for op, act := range acts {
		for _, r := range []store.Request{web, operator} {
			wantCode(t, act(r), secret.CodeDenied)
		}
		if out.Len() != 0 {
			t.Fatal("somebody was given an archive")
		}
		n := w.audit.len()
		if err := act(su); err != nil {
			t.Fatal(op, err)
		}
		if list := w.audit.since(n); !slices.Equal(list, []string{op + " intent allow", op + " outcome allow ok"}) {
			t.Error(list)
		}
		out.Reset()
	}
	w.audit.fail = func(r audit.Record) error { return errors.New("the disk is full") }
	if err := w.ExportSnapshot(ctx, su, begin); err == nil || out.Len() != 0 {
		t.Error("without a record an archive was given out:", err)
	}
	w.audit.fail = nil
	_, err := w.ArchiveCare(ctx, web)
	wantCode(t, err, secret.CodeDenied)
	if care, err := w.ArchiveCare(ctx, operator); err != nil || care.Archive == "" {
		t.Error(care, err)
	}
}

// Settings of the archive wait for the format level that has them; other settings leave them alone.
func TestArchiveSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	day, never, daily, versions, ages, many := uint64(86400), uint64(0), uint32(7), uint32(5), uint64(1<<40), uint32(1<<30)
	set := func(c store.SettingsChange) (store.Settings, error) { return w.PutSettings(ctx, su, c) }
	if got, err := w.GetSettings(ctx, su); err != nil || got.ArchiveDrillSeconds != day || got.Retention != (store.Retention{}) {
		t.Fatal(got, err)
	}
	_, err := set(store.SettingsChange{KeepDaily: &daily})
	var e *secret.Error
	if !errors.As(err, &e) || e.Code != secret.CodeConflict || e.Reason != "level_too_low" {
		t.Fatal(err)
	}
	if _, err := set(store.SettingsChange{MaxVersions: &versions}); err != nil {
		t.Fatal(err)
	}
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: 3}}})
	for _, c := range []store.SettingsChange{{ArchiveSnapshotSeconds: &ages}, {ArchiveDrillSeconds: &ages}, {KeepMonthly: &many}} {
		_, err := set(c)
		wantCode(t, err, secret.CodeInvalid)
	}
	for _, c := range []store.SettingsChange{{KeepDaily: &daily}, {ArchiveDrillSeconds: &never}, {ArchiveSnapshotSeconds: &day}, {MaxVersions: &daily}} {
		if _, err := set(c); err != nil {
			t.Fatal(err)
		}
	}
	got, err := w.GetSettings(ctx, su)
	if err != nil || got.ArchiveDrillSeconds != 0 || got.ArchiveSnapshotSeconds != day || got.Retention != (store.Retention{Daily: 7}) || got.MaxVersions != 7 {
		t.Fatal(got, err)
	}
}

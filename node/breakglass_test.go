package node_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
	"github.com/spike-ha/spike-ha/secret"
)

// opened are recovery files with the shares in them.
func opened(t *testing.T, files []client.RecoveryFile, identities ...age.Identity) (list []client.RestoreRequest) {
	t.Helper()
	for _, f := range files {
		file, err := recoveryfile.Parse([]byte(f.Content))
		if err != nil {
			t.Fatal(err)
		}
		share, err := file.Open(identities...)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, client.RestoreRequest{Index: file.Index, Share: share, Cluster: file.Cluster.ID[:], Set: file.Set[:]})
	}
	return list
}

// recovered are all shares of a cluster, by one person.
func recovered(t *testing.T, c *nodetest.Cluster) []client.RestoreRequest {
	t.Helper()
	key, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	files, err := c.Client(nodetest.Role("recover")).Recover(ctx, client.RecoverRequest{Recipients: []string{key.Recipient().String()}, OneHolder: true})
	if err != nil {
		t.Fatal(err)
	}
	return opened(t, files, key)
}

// All Keepers and all peers stop. Shares that people kept open the cluster again, given one by one, at any
// peers; whatever is wrong with one is said of that one, and spoils nothing. The Keepers are refilled.
func TestBreakGlass(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Keepers: 5})
	super := c.Client(nodetest.Role("superuser"))
	put(t, super, "a/b", "x")

	shares := recovered(t, c)
	if len(shares) != 5 {
		t.Fatalf("%d shares", len(shares))
	}
	for i := range 3 {
		c.Stop(i)
	}
	for i := range 5 {
		c.StopKeeper(i)
		c.StartKeeper(i)
	}
	for i := range 3 {
		c.Start(i)
	}
	var each []*client.Client
	for i := range 3 {
		each = append(each, c.Client(nodetest.Role("restore"), i))
	}
	change := func(of client.RestoreRequest, edit func(*client.RestoreRequest)) client.RestoreRequest {
		of.Share, of.Cluster, of.Set = bytes.Clone(of.Share), bytes.Clone(of.Cluster), bytes.Clone(of.Set)
		edit(&of)
		return of
	}
	swapped := change(shares[1], func(r *client.RestoreRequest) { r.Index = 1 })
	wrong := map[string]client.RestoreRequest{
		"share_wrong":           change(shares[2], func(r *client.RestoreRequest) { r.Share[31] ^= 1 }),
		"share_index_unknown":   change(shares[2], func(r *client.RestoreRequest) { r.Index = 6 }),
		"share_foreign_cluster": change(shares[2], func(r *client.RestoreRequest) { r.Cluster[0] ^= 1 }),
		"share_foreign":         change(shares[2], func(r *client.RestoreRequest) { r.Set[0] ^= 1 }),
	}
	for given, at := range []int{0, 3, 4} {
		for reasonWanted, r := range wrong {
			if _, err := each[at%3].Restore(ctx, r); secret.CodeOf(err) != secret.CodeInvalid || reason(err) != reasonWanted {
				t.Errorf("after %d shares, %s: %v", given, reasonWanted, err)
			}
		}
		for _, r := range []client.RestoreRequest{swapped, {}, {Index: 1, Share: []byte("short")}, {Index: 1, Share: make([]byte, 32)}, {Index: 300, Share: make([]byte, 32)}} {
			if _, err := each[at%3].Restore(ctx, r); secret.CodeOf(err) != secret.CodeInvalid {
				t.Errorf("after %d shares, %v: %v", given, r, err)
			}
		}
		if _, err := super.Restore(ctx, shares[at]); secret.CodeOf(err) != secret.CodeDenied {
			t.Errorf("a superuser gave a share: %v", err)
		}
		progress, err := each[at%3].Restore(ctx, shares[at])
		if err != nil {
			t.Fatal(err)
		}
		if progress.Collected != given+1 || progress.Remaining != 2-given || progress.Restored != (given == 2) || !slices.Contains(progress.Given, at+1) {
			t.Errorf("after %d shares: %+v", given+1, progress)
		}
		if !progress.Restored {
			if _, err := each[(at+1)%3].Restore(ctx, shares[at]); reason(err) != "share_given_already" {
				t.Errorf("the same share again: %v", err)
			}
		}
	}
	c.Ready()
	if v := get(t, super, "a/b"); v != "x" {
		t.Errorf("read %q", v)
	}
	nodetest.Eventually(t, "all Keepers have their shares again", func() error {
		for _, k := range c.Node(0).Status(ctx).Keepers {
			if k.Health != "good" {
				return errors.New(k.Name + " is " + k.Health)
			}
		}
		return nil
	})
	if _, err := each[0].Restore(ctx, shares[1]); reason(err) != "not_sealed" {
		t.Errorf("a share for an open cluster: %v", err)
	}
	audited := ""
	for i := range 3 {
		files, _ := filepath.Glob(filepath.Join(c.DataDir(i), "audit", "*.jsonl"))
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			audited += string(b)
		}
	}
	if strings.Count(audited, `"operator.restore"`) < 6 || !strings.Contains(audited, `"operator.recover"`) {
		t.Error("recovery is not on record")
	}
}

// Nobody gets enough shares for the root key by an oversight, and nothing but a public key of age is a recipient.
func TestRecoveryFilesAreDealt(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1, Keepers: 5})
	cl := c.Client(nodetest.Role("recover"))
	var recipients []string
	var identities []age.Identity
	for range 6 {
		key, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		recipients, identities = append(recipients, key.Recipient().String()), append(identities, key)
	}
	for n, reasonWanted := range map[int]string{0: "", 1: "one_holder", 6: ""} {
		if _, err := cl.Recover(ctx, client.RecoverRequest{Recipients: recipients[:n]}); secret.CodeOf(err) != secret.CodeInvalid || reason(err) != reasonWanted {
			t.Errorf("%d recipients: %v", n, err)
		}
	}
	if _, err := cl.Recover(ctx, client.RecoverRequest{Recipients: []string{recipients[0], "age1nobody"}}); secret.CodeOf(err) != secret.CodeInvalid {
		t.Errorf("a recipient that cannot be: %v", err)
	}
	if _, err := c.Client(nodetest.Role("superuser")).Recover(ctx, client.RecoverRequest{Recipients: recipients[:5]}); secret.CodeOf(err) != secret.CodeDenied {
		t.Errorf("a superuser took the shares: %v", err)
	}
	// Shares 1 to 5 go to the recipients 1, 2, 3, 1, 2: none has three.
	files, err := cl.Recover(ctx, client.RecoverRequest{Recipients: recipients[:3]})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		file, err := recoveryfile.Parse([]byte(f.Content))
		if err != nil || file.Index != i+1 || f.Share != i+1 || f.Name != file.Name() || file.Threshold != 3 {
			t.Fatal(err, f, file)
		}
		for who, identity := range identities {
			if _, err := file.Open(identity); (err == nil) != (who == i%3) {
				t.Errorf("share %d opened by %d: %v", i+1, who+1, err)
			}
		}
	}
}

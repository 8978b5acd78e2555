package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// tester is what testing.T, testing.B, testing.F and rapid.T have in common.
type tester interface {
	Helper()
	Fatal(...any)
}

var clusterID = bytes.Repeat([]byte{0xC1}, 16)

func token(name string) []byte {
	h := sha256.Sum256([]byte(name))
	return h[:]
}

func encode(t tester, c *fsmpb.Command) []byte {
	t.Helper()
	b, err := fsm.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// founded returns a machine founded at index 1.
func founded(t tester, s *fsmpb.Settings) *fsm.Machine {
	t.Helper()
	m := fsm.New(fsm.Options{})
	want(t, apply(t, m, 1, encode(t, found(s)))[0], fsmpb.Code_OK)
	return m
}

// apply applies one entry and decodes its results.
func apply(t tester, m *fsm.Machine, index uint64, commands ...[]byte) []*fsmpb.Result {
	t.Helper()
	raw, err := m.Apply(index, 1, commands)
	if err != nil {
		t.Fatal(err)
	}
	results := make([]*fsmpb.Result, len(raw))
	for i, b := range raw {
		if results[i], err = fsm.DecodeResult(b); err != nil {
			t.Fatal(err)
		}
	}
	return results
}

// do applies one command in an entry of its own.
func do(t tester, m *fsm.Machine, c *fsmpb.Command) *fsmpb.Result {
	t.Helper()
	return apply(t, m, m.View().Index()+1, encode(t, c))[0]
}

func want(t tester, r *fsmpb.Result, code fsmpb.Code) {
	t.Helper()
	if r.Code != code {
		t.Fatal(fmt.Sprintf("result %v (%s), want %v", r.Code, r.Reason, code))
	}
}

func found(s *fsmpb.Settings) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{
		ClusterId: clusterID, Incarnation: 1, Settings: s}}}
}

// at sets the time of a command.
func at(time int64, c *fsmpb.Command) *fsmpb.Command {
	c.TimeUnixNano = time
	return c
}

// with gives a command a write id that carries an index.
func with(id byte, index uint64, c *fsmpb.Command) *fsmpb.Command {
	c.WriteId = &fsmpb.WriteID{Id: bytes.Repeat([]byte{id}, 16), Index: index, Request: []byte{id}}
	return c
}

func put(name string, expected, version uint64, value string) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_PutSecret{PutSecret: &fsmpb.PutSecret{
		Token: token(name), PathKeyId: []byte("pathkey1"), Name: []byte("sealed " + name),
		ExpectedRevision: expected, Version: version, Value: []byte(value)}}}
}

func del(name string, expected uint64, versions ...uint64) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_DeleteVersions{DeleteVersions: &fsmpb.DeleteVersions{
		Token: token(name), ExpectedRevision: expected, Versions: versions}}}
}

func undel(name string, expected uint64, versions ...uint64) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_UndeleteVersions{UndeleteVersions: &fsmpb.UndeleteVersions{
		Token: token(name), ExpectedRevision: expected, Versions: versions}}}
}

func destroy(name string, expected uint64, versions ...uint64) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_DestroyVersions{DestroyVersions: &fsmpb.DestroyVersions{
		Token: token(name), ExpectedRevision: expected, Versions: versions}}}
}

func purge(name string, expected uint64) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_PurgeSecret{PurgeSecret: &fsmpb.PurgeSecret{
		Token: token(name), ExpectedRevision: expected}}}
}

// all makes one transaction of commands that have one operation each.
func all(commands ...*fsmpb.Command) *fsmpb.Command {
	tx := &fsmpb.Transaction{}
	for _, c := range commands {
		o := &fsmpb.Operation{}
		switch op := c.Op.(type) {
		case *fsmpb.Command_PutSecret:
			o.Op = &fsmpb.Operation_PutSecret{PutSecret: op.PutSecret}
		case *fsmpb.Command_DeleteVersions:
			o.Op = &fsmpb.Operation_DeleteVersions{DeleteVersions: op.DeleteVersions}
		case *fsmpb.Command_DestroyVersions:
			o.Op = &fsmpb.Operation_DestroyVersions{DestroyVersions: op.DestroyVersions}
		case *fsmpb.Command_PurgeSecret:
			o.Op = &fsmpb.Operation_PurgeSecret{PurgeSecret: op.PurgeSecret}
		}
		tx.Operations = append(tx.Operations, o)
	}
	return &fsmpb.Command{Op: &fsmpb.Command_Transaction{Transaction: tx}}
}

func putPolicy(name string, expected uint64, body string) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_PutPolicy{PutPolicy: &fsmpb.PutPolicy{
		Token: token(name), ExpectedRevision: expected, Body: []byte(body)}}}
}

func delPolicy(name string, expected uint64) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_DeletePolicy{DeletePolicy: &fsmpb.DeletePolicy{
		Token: token(name), ExpectedRevision: expected}}}
}

func shareID(n byte) []byte { return bytes.Repeat([]byte{n}, 16) }

func begin(n byte, supersedes []byte) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_BeginShareSet{BeginShareSet: &fsmpb.BeginShareSet{
		Supersedes: supersedes,
		Set: &fsmpb.ShareSet{Id: shareID(n), Shares: 3, Threshold: 2,
			Fingerprints: [][]byte{token("s1"), token("s2"), token("s3")},
			Keepers:      []string{"keeper-1", "keeper-2", ""}}}}}
}

func commit(n byte) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_CommitShareSet{CommitShareSet: &fsmpb.CommitShareSet{
		Id: shareID(n), Keyring: []byte("sealed keyring"),
		Epochs: []*fsmpb.Epoch{{Purpose: "data", Id: []byte{n, 1}}, {Purpose: "path", Id: []byte{n, 2}}}}}}
}

// commitFor commits for an incarnation.
func commitFor(n byte, incarnation uint64) *fsmpb.Command {
	c := commit(n)
	c.GetCommitShareSet().Incarnation = incarnation
	return c
}

func abandon(n byte) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_AbandonShareSet{AbandonShareSet: &fsmpb.AbandonShareSet{Id: shareID(n)}}}
}

// replace puts another keyring in the place of the one of commit, or of keyring.
func replace(committed byte, keyring, with string, epoch byte) *fsmpb.Command {
	was := sha256.Sum256([]byte(keyring))
	return &fsmpb.Command{Op: &fsmpb.Command_ReplaceKeyring{ReplaceKeyring: &fsmpb.ReplaceKeyring{
		Committed: shareID(committed), Replaces: was[:], Keyring: []byte(with),
		Epochs: []*fsmpb.Epoch{{Purpose: "data", Id: []byte{epoch, 1}}, {Purpose: "path", Id: []byte{epoch, 2}}}}}}
}

func resealed(name string, revision, version uint64, value string) *fsmpb.ResealedVersion {
	return &fsmpb.ResealedVersion{Token: token(name), Revision: revision, Version: version, Value: []byte(value)}
}

func reseal(versions ...*fsmpb.ResealedVersion) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_Reseal{Reseal: &fsmpb.Reseal{Versions: versions}}}
}

func resealPolicy(name string, revision uint64, body string) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_Reseal{Reseal: &fsmpb.Reseal{
		Policies: []*fsmpb.ResealedPolicy{{Token: token(name), Revision: revision, Body: []byte(body)}}}}}
}

func setSeal(sealed bool, generation uint64) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{
		Sealed: sealed, ExpectedGeneration: generation}}}
}

func anchor(peer string, count uint64) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_AnchorAudit{AnchorAudit: &fsmpb.AnchorAudit{
		Peer: peer, Count: count, Head: token("head"), File: "audit-1.log"}}}
}

func putSettings(expected uint64, s *fsmpb.Settings) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_PutSettings{PutSettings: &fsmpb.PutSettings{
		ExpectedRevision: expected, Settings: s}}}
}

func secret(m *fsm.Machine, name string) *fsmpb.Secret {
	s, _ := m.View().Secret(fsm.Token(token(name)))
	return s
}

func snapshot(t tester, v *fsm.View) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// equal compares everything that two views can be asked.
func equal(t tester, a, b *fsm.View) {
	t.Helper()
	if a.Index() != b.Index() || a.Term() != b.Term() {
		t.Fatal("indices differ: ", a.Index(), b.Index())
	}
	ad, aa := a.Hashes()
	bd, ba := b.Hashes()
	as, _ := a.Size()
	bs, _ := b.Size()
	if ad != bd || aa != ba || as != bs || a.WindowFloor() != b.WindowFloor() || a.WindowLen() != b.WindowLen() {
		t.Fatal(fmt.Sprintf("views at %d differ: data %v all %v size %v/%v window %d/%d",
			a.Index(), ad == bd, aa == ba, as, bs, a.WindowLen(), b.WindowLen()))
	}
	if !bytes.Equal(snapshot(t, a), snapshot(t, b)) {
		t.Fatal("snapshots differ")
	}
}

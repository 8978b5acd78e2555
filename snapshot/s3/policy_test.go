//go:build !minio

package s3_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/s3"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// allow puts the documents of deploy/s3 together into the policy of a bucket, in which each has the user of its name: the way of
// stores that have no policies of users.
func allow(t testing.TB, s *s3server.Server, bucket, prefix string, names ...string) {
	t.Helper()
	var policy struct {
		Version   string
		Statement []map[string]any
	}
	for _, name := range names {
		raw, err := os.ReadFile(filepath.Join("..", "..", "deploy", "s3", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var document struct {
			Version   string
			Statement []map[string]any
		}
		d := json.NewDecoder(strings.NewReader(strings.NewReplacer("BUCKET", bucket, "PREFIX", prefix).Replace(string(raw))))
		d.DisallowUnknownFields()
		if err := d.Decode(&document); err != nil {
			t.Fatal(err)
		}
		for _, statement := range document.Statement {
			statement["Sid"] = name + statement["Sid"].(string)
			statement["Principal"] = map[string]any{"AWS": []string{name}}
			policy.Statement = append(policy.Statement, statement)
		}
		policy.Version = document.Version
	}
	b, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if _, err := s.Client(t).PutBucketPolicy(t.Context(), &awss3.PutBucketPolicyInput{Bucket: &bucket, Policy: &text}); err != nil {
		t.Fatal(err)
	}
}

// Each of the three does its work with its policy and nothing else.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	root := open(t, s.Bucket(t, "archive"))
	users := map[string]*s3server.Server{}
	for _, name := range []string{"writer", "restorer", "pruner"} {
		users[name] = s.User(t, name)
		if err := put(t.Context(), open(t, users[name].URL("archive")), "some/where/x", "x"); !errors.Is(err, snapshot.ErrForbidden) {
			t.Fatalf("%s, before there is a policy: %v", name, err)
		}
	}
	allow(t, s, "archive", "some/where", "writer", "restorer", "pruner")
	as := func(name string) *snapshot.Archive {
		return snapshot.New(open(t, users[name].URL("archive")), "some/where", t.TempDir())
	}

	// The writer ships, and a second one goes on where it ended; also to a store that it must look at first.
	log := &source{}
	for n, options := range []string{"", "", "&conditional=false"} {
		log.grow(20)
		sh := shipper(snapshot.New(open(t, users["writer"].URL("archive")+options), "some/where", t.TempDir()), log, cluster)
		run(t, sh, func() {
			eventually(t, "everything is shipped", func() bool { return sh.Status().Shipped == log.at() })
		})
		if n > 0 && sh.Status().Error != "" {
			t.Error(sh.Status().Error)
		}
	}
	list, err := as("writer").List(t.Context(), cluster)
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	object := "some/where/" + list[0].Name

	// A peer archives its audit log with those rights, and learns from a list what is there.
	records := snapshot.Header{Cluster: cluster, Incarnation: 1, Peer: "nexus-2", First: 1, Last: 9, Created: time.Now()}
	for _, want := range []error{nil, snapshot.ErrExists} {
		_, err := as("writer").PutAudit(t.Context(), records, box{}, func(w io.Writer) error {
			_, err := io.WriteString(w, "records")
			return err
		}, nil)
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if logs, err := as("writer").ListAudit(t.Context(), cluster, 1, "nexus-2"); err != nil || len(logs) != 1 || logs[0].Name != records.AuditName() {
		t.Errorf("%+v, %v", logs, err)
	}

	// The restorer reads all of it.
	if got, last := replayed(t, as("restorer"), cluster); last != log.at() || !bytes.Equal(got, state(last)) {
		t.Errorf("to %d: %s", last, got)
	}

	// And each of them does no more.
	if err := put(t.Context(), root, "elsewhere", "secret"); err != nil {
		t.Fatal(err)
	}
	can := map[string][]string{"writer": {"create"}, "restorer": {"open"}, "pruner": {"delete"}}
	for name, user := range users {
		b := open(t, user.URL("archive"))
		for what, try := range map[string]func(object string) error{
			"create": func(object string) error { return put(t.Context(), b, object+"-by-"+name, "x") },
			"open":   func(object string) error { _, err := get(t.Context(), b, object); return err },
			"delete": func(object string) error { return b.Delete(t.Context(), object) },
		} {
			if allowed := can[name][0] == what; what != "delete" || !allowed {
				if err := try(object); allowed && err != nil || !allowed && !errors.Is(err, snapshot.ErrForbidden) {
					t.Errorf("%s: %s below the prefix: %v", name, what, err)
				}
			}
			if err := try("elsewhere"); !errors.Is(err, snapshot.ErrForbidden) {
				t.Errorf("%s: %s outside the prefix: %v", name, what, err)
			}
		}
		for _, err := range b.List(t.Context(), "", "") {
			if !errors.Is(err, snapshot.ErrForbidden) {
				t.Errorf("%s lists the whole bucket: %v", name, err)
			}
		}
	}

	// The pruner lists and deletes.
	h, write := log.State()
	h.Cluster, h.Incarnation, h.Peer, h.Created = cluster, 1, "nexus-1", time.Now()
	newest, _, err := as("writer").PutSnapshot(t.Context(), h, box{}, write, nil)
	if err != nil && !errors.Is(err, snapshot.ErrExists) {
		t.Fatal(err)
	}
	verified := map[string]bool{newest.Name: true}
	list, err = as("pruner").List(t.Context(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	_, drop := snapshot.Retain(list, snapshot.Retention{}, verified)
	done, err := as("pruner").Prune(t.Context(), drop)
	if err != nil || done.Deleted != len(drop) || len(drop) == 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if got, last := replayed(t, as("restorer"), cluster); last != log.at() || !bytes.Equal(got, state(last)) {
		t.Errorf("after pruning to %d: %s", last, got)
	}
	if _, err := as("writer").Prune(t.Context(), list); !errors.Is(err, snapshot.ErrForbidden) {
		t.Errorf("the writer prunes: %v", err)
	}

	// A probe tells each what it may.
	for name, want := range map[string]s3.Capabilities{
		"writer":   {Create: s3.Yes, Read: s3.Forbidden, List: s3.Yes, Delete: s3.Forbidden, Conditional: s3.Yes, Fresh: s3.Yes, Versioning: s3.No, Lock: s3.Forbidden},
		"restorer": {Create: s3.Forbidden, Read: s3.Unknown, List: s3.Yes, Delete: s3.Unknown, Conditional: s3.Unknown, Fresh: s3.Unknown, Versioning: s3.Unknown, Lock: s3.Forbidden},
		"pruner":   {Create: s3.Forbidden, Read: s3.Unknown, List: s3.Yes, Delete: s3.Unknown, Conditional: s3.Unknown, Fresh: s3.Unknown, Versioning: s3.Unknown, Lock: s3.Forbidden},
	} {
		got, err := open(t, users[name].URL("archive")).Probe(t.Context(), "some/where")
		if left := len(got.Left); err != nil || left != map[string]int{"writer": 2}[name] {
			t.Errorf("%s: %d objects are left, %v", name, left, err)
		}
		if got.Left, got.Clock = nil, 0; got.String() != want.String() {
			t.Errorf("%s:\n%vinstead of\n%v", name, got, want)
		}
	}
	if list, err := as("restorer").List(t.Context(), [16]byte{}); err != nil || slices.ContainsFunc(list, func(i snapshot.Item) bool { return strings.Contains(i.Name, "probe") }) {
		t.Errorf("the archive shows what a probe left: %v", err)
	}
}

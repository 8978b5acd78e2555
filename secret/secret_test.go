package secret_test

import (
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/secret"
)

func TestParsePath(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a", "a/b", "tenants/acme/db-1", "a.b/c_d", "x(y)?+*|[z]{1}\\", ".hidden", "...", strings.Repeat("a", 500)} {
		if p, err := secret.ParsePath(s); err != nil || string(p) != s {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "a/../b", "../a", "a/..", "a b", "a%2fb", "a\x00b", "a\nb", "á", "a$", "^a", strings.Repeat("a", 501)} {
		if _, err := secret.ParsePath(s); secret.CodeOf(err) != secret.CodeInvalid {
			t.Errorf("%q was accepted", s)
		} else if len(s) > 5 && strings.Contains(err.Error(), s) {
			t.Errorf("%q stands in the error text", s)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("a/b")
	f.Add("a//b/../c")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := secret.ParsePath(s)
		if err != nil {
			return
		}
		if string(p) != s {
			t.Fatal("a path was changed by parsing")
		}
		for _, segment := range strings.Split(s, "/") {
			if segment == "" || segment == "." || segment == ".." {
				t.Fatalf("%q has the segment %q", s, segment)
			}
		}
	})
}

func TestReserved(t *testing.T) {
	t.Parallel()
	for p, want := range map[secret.Path]bool{"spike/system/acl": true, "spike/system/x": true, "spike/system": true, "spike/systemx": false, "spike": false, "a/spike/system/acl": false} {
		if p.Reserved() != want {
			t.Errorf("%q: reserved %v", p, !want)
		}
	}
}

func TestParseCaller(t *testing.T) {
	t.Parallel()
	domains := secret.TrustDomains{Nexus: []string{"a.org"}, Keeper: []string{"a.org"}, Pilot: []string{"a.org", "b.org"}, Bootstrap: []string{"a.org"}, Lite: []string{"a.org"}}
	for _, c := range []struct {
		domain, path string
		role         secret.Role
	}{
		{"a.org", "/spike/pilot/role/superuser", secret.RoleSuperuser},
		{"b.org", "/spike/pilot/role/superuser", secret.RoleSuperuser},
		{"c.org", "/spike/pilot/role/superuser", secret.RoleNone},
		{"a.org", "/spike/pilot/role/superuser/alice", secret.RoleSuperuser},
		{"a.org", "/spike/pilot/role/superuserx", secret.RoleNone},
		{"a.org", "/spike/pilot/role/SUPERUSER", secret.RoleNone},
		{"a.org", "/spike/pilot/role", secret.RoleNone},
		{"a.org", "/spike/nexus/nexus-1", secret.RoleNexus},
		{"b.org", "/spike/nexus/nexus-1", secret.RoleNone},
		{"a.org", "/x/spike/nexus", secret.RoleNone},
		{"a.org", "/workload/web", secret.RoleNone},
		{"a.org", "/spike/workload/role/lite", secret.RoleLite},
	} {
		if got := domains.ParseCaller(c.domain, c.path); got.Role != c.role || got.ID != "spiffe://"+c.domain+c.path {
			t.Errorf("%s%s: %+v, want role %q", c.domain, c.path, got, c.role)
		}
	}
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	p, err := secret.ParsePermissions([]string{"list", "read"})
	if err != nil || p.String() != "read,list" {
		t.Errorf("%v %v", p, err)
	}
	if !p.Grants(secret.Read) || p.Grants(secret.Write) || p.Grants(secret.Read|secret.Write) || !secret.Super.Grants(secret.Read|secret.Write) {
		t.Error("grants")
	}
	for _, bad := range [][]string{nil, {}, {"Read"}, {"read", "all"}} {
		if _, err := secret.ParsePermissions(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

package policy_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/policy"
	"github.com/spike-ha/spike-ha/secret"
)

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func compiled(t fataler, name string, id, path secret.Pattern, p secret.Permission) *policy.Compiled {
	t.Helper()
	c, err := policy.Compile(secret.Policy{Name: name, SPIFFEID: id, Path: path, Permissions: p})
	if err != nil {
		t.Fatalf("compile %s: %v", name, err)
	}
	return c
}

func app(id string) secret.Caller { return secret.Caller{ID: id} }

const web = "spiffe://example.org/workload/web"

func TestDecide(t *testing.T) {
	t.Parallel()
	everyone := secret.Pattern{Kind: secret.Prefix, Text: "spiffe://example.org"}
	for _, c := range []struct {
		path    secret.Pattern
		ask     secret.Path
		allowed bool
	}{
		{secret.Pattern{Kind: secret.Exact, Text: "a/b"}, "a/b", true},
		{secret.Pattern{Kind: secret.Exact, Text: "a/b"}, "a/b/c", false},
		{secret.Pattern{Kind: secret.Exact, Text: "a/b"}, "xa/b", false},
		{secret.Pattern{Kind: secret.Prefix, Text: "a/b"}, "a/b", true},
		{secret.Pattern{Kind: secret.Prefix, Text: "a/b"}, "a/b/c", true},
		{secret.Pattern{Kind: secret.Prefix, Text: "a/b/"}, "a/b/c", true},
		{secret.Pattern{Kind: secret.Prefix, Text: "a/b"}, "a/bc", false},
		{secret.Pattern{Kind: secret.Glob, Text: "a/*/c"}, "a/b/c", true},
		{secret.Pattern{Kind: secret.Glob, Text: "a/*/c"}, "a/b/b/c", false},
		{secret.Pattern{Kind: secret.Glob, Text: "a/**/c"}, "a/b/b/c", true},
		{secret.Pattern{Kind: secret.Glob, Text: "a.b"}, "axb", false},
		{secret.Pattern{Kind: secret.Regexp, Text: "a|b"}, "a", true},
		{secret.Pattern{Kind: secret.Regexp, Text: "a|b"}, "ab", false},
		{secret.Pattern{Kind: secret.Regexp, Text: "^a/.*$"}, "a/x", true},
		{secret.Pattern{Kind: secret.Regexp, Text: "system"}, secret.SystemPolicies, false},
		{secret.Pattern{Kind: secret.Regexp, Text: "(?i)^A$"}, "a", true},
	} {
		set := policy.NewSet(compiled(t, "p", everyone, c.path, secret.Read))
		if got := set.Decide(app(web), secret.Read, c.ask); got.Allowed != c.allowed {
			t.Errorf("%s %q on %q: allowed %v, want %v", c.path.Kind, c.path.Text, c.ask, got.Allowed, c.allowed)
		}
		if set.Decide(app(web), secret.Write, c.ask).Allowed {
			t.Errorf("%q: a policy for read granted write", c.path.Text)
		}
		if set.Decide(app("spiffe://example.org.evil/workload/web"), secret.Read, c.ask).Allowed {
			t.Errorf("%q: granted to another trust domain", c.path.Text)
		}
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	all := secret.Pattern{Kind: secret.Regexp, Text: ".*"}
	wide := policy.NewSet(compiled(t, "wide", all, all, secret.Super))
	none := policy.NewSet()
	paths := map[string]secret.Path{"secret": "a/b", "acl": secret.SystemPolicies, "list": secret.SystemSecrets, "cipher": secret.SystemCipher}
	for role, allowed := range map[secret.Role]string{
		secret.RoleNone: "", secret.RoleSuperuser: "secret acl list cipher", secret.RoleAdmin: "acl", secret.RoleOperator: "secret list",
		secret.RoleLite: "cipher", secret.RoleRecover: "", secret.RoleRestore: "", secret.RoleBootstrap: "", secret.RoleNexus: "", secret.RoleKeeper: "",
	} {
		for name, path := range paths {
			caller := secret.Caller{ID: "spiffe://example.org/x", Role: role}
			want := strings.Contains(allowed, name)
			if got := none.Decide(caller, secret.Write, path).Allowed; got != want {
				t.Errorf("role %q on %s without policies: %v, want %v", role, name, got, want)
			}
			switch role {
			case secret.RoleRecover, secret.RoleRestore, secret.RoleBootstrap, secret.RoleNexus, secret.RoleKeeper:
				if wide.Decide(caller, secret.Read, path).Allowed {
					t.Errorf("a policy gave the system identity %q access to %s", role, name)
				}
			}
		}
	}
}

// Upstream matches substrings; what relies on that must be refused, whatever
// way the regexp is written (architecture §6).
func TestFromWireRefusesWhatIsNotAnchored(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"a", "^a", "a$", "^a|b$", "^a|^b$", "(^a$)|b", "(?m)^a$", "^(a$)?", "(^)?a$", "^a$|"} {
		if _, err := policy.FromWire("path pattern", text, false); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
	for _, text := range []string{"^a$", "^a|b$|^c$"[:0] + "^a$|^b$", "^(a|b)$", "(^a$)", "^a/.*$", "^$", `^secrets/db-[0-9]+$`} {
		if _, err := policy.FromWire("path pattern", text, false); err != nil {
			t.Errorf("%q was refused: %v", text, err)
		}
	}
	if _, err := policy.FromWire("SPIFFE id pattern", `^spiffe://example\.org/workload/.*$`, true); err != nil {
		t.Error(err)
	}
}

// Anchored means: matching somewhere is the same as matching as a whole.
func TestAnchoredPatternsMatchWholeNames(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[\^$()|ab.*?+]{0,12}`).Draw(t, "pattern")
		pattern, err := policy.FromWire("path pattern", text, false)
		if err != nil {
			return
		}
		whole, err := regexp.Compile(`\A(?:` + text + `)\z`)
		if err != nil {
			return
		}
		set := policy.NewSet(compiled(t, "p", secret.Pattern{Kind: secret.Exact, Text: web}, pattern, secret.Read))
		path := secret.Path(rapid.StringMatching(`[ab]{0,6}`).Draw(t, "path"))
		if got, want := set.Decide(app(web), secret.Read, path).Allowed, whole.MatchString(string(path)); got != want {
			t.Fatalf("%q on %q: %v, the whole match says %v", text, path, got, want)
		}
	})
}

// ToWire must show a pattern that means the same when it is read back.
func TestWireFormMeansTheSame(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]secret.MatchKind{secret.Exact, secret.Prefix, secret.Glob, secret.Regexp}).Draw(t, "kind")
		text := rapid.StringMatching(`[ab./*]{1,8}`).Draw(t, "text")
		original, err := policy.Compile(secret.Policy{Name: "p", Permissions: secret.Read,
			SPIFFEID: secret.Pattern{Kind: secret.Exact, Text: web}, Path: secret.Pattern{Kind: kind, Text: text}})
		if err != nil {
			return
		}
		shown, err := policy.FromWire("path pattern", policy.ToWire(original.Path), false)
		if err != nil {
			t.Fatalf("%s %q is shown as %q, which is refused: %v", kind, text, policy.ToWire(original.Path), err)
		}
		again := compiled(t, "p", original.SPIFFEID, shown, secret.Read)
		path := secret.Path(rapid.StringMatching(`[ab./]{0,8}`).Draw(t, "path"))
		if a, b := policy.NewSet(original).Decide(app(web), secret.Read, path), policy.NewSet(again).Decide(app(web), secret.Read, path); a != b {
			t.Fatalf("%s %q on %q: %v, its wire form %q: %v", kind, text, path, a, policy.ToWire(original.Path), b)
		}
	})
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	good := secret.Pattern{Kind: secret.Exact, Text: "a"}
	for name, p := range map[string]secret.Policy{
		"no name":       {SPIFFEID: good, Path: good, Permissions: secret.Read},
		"no permission": {Name: "p", SPIFFEID: good, Path: good},
		"untyped":       {Name: "p", SPIFFEID: good, Path: secret.Pattern{Text: "a"}, Permissions: secret.Read},
		"empty pattern": {Name: "p", SPIFFEID: secret.Pattern{Kind: secret.Exact}, Path: good, Permissions: secret.Read},
		"long pattern":  {Name: "p", SPIFFEID: good, Path: secret.Pattern{Kind: secret.Exact, Text: strings.Repeat("a", 501)}, Permissions: secret.Read},
		"bad regexp":    {Name: "p", SPIFFEID: good, Path: secret.Pattern{Kind: secret.Regexp, Text: "("}, Permissions: secret.Read},
		"control byte":  {Name: "p", SPIFFEID: good, Path: secret.Pattern{Kind: secret.Exact, Text: "a\x00"}, Permissions: secret.Read},
	} {
		if _, err := policy.Compile(p); secret.CodeOf(err) != secret.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSetWithIsACopy(t *testing.T) {
	t.Parallel()
	any := secret.Pattern{Kind: secret.Glob, Text: "**"}
	a := policy.NewSet(compiled(t, "a", any, any, secret.Read))
	b := a.With(nil, []string{"a"})
	if !a.Decide(app(web), secret.Read, "x").Allowed || b.Decide(app(web), secret.Read, "x").Allowed {
		t.Error("dropping a policy changed the old set, or not the new one")
	}
}

// The target is 5 µs with 1,000 policies on an unchanged view.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		var list []*policy.Compiled
		for i := range n {
			list = append(list, compiled(b, fmt.Sprintf("p%d", i),
				secret.Pattern{Kind: secret.Regexp, Text: `^spiffe://example\.org/workload/.*$`},
				secret.Pattern{Kind: secret.Regexp, Text: fmt.Sprintf("^tenants/t%d/.*$", i)}, secret.Read))
		}
		set := policy.NewSet(list...)
		b.Run(fmt.Sprintf("policies=%d", n), func(b *testing.B) {
			for b.Loop() {
				if !set.Decide(app(web), secret.Read, "tenants/t7/db").Allowed {
					b.Fatal("denied")
				}
			}
		})
	}
}

// A regular expression is accepted only when it is one by itself, and then
// matches whole names and nothing else: compared with Go's own grouping.
func FuzzRegexpMatchesWholeNames(f *testing.F) {
	for _, s := range [][2]string{{"a|b", "ab"}, {"a)|(b", "xb"}, {"^a$|^b$", "b"}, {"(?m)^a$", "x\na"}, {`\Qa`, "a"}, {"a$|b", "ba"}, {"(?i)^A", "ab"}, {"", ""}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		p := secret.Policy{Name: "p", SPIFFEID: secret.Pattern{Kind: secret.Exact, Text: web}, Path: secret.Pattern{Kind: secret.Regexp, Text: text}, Permissions: secret.Read}
		c, err := policy.Compile(p)
		if err != nil {
			return
		}
		if _, err := regexp.Compile(text); err != nil {
			t.Fatalf("%q is no regular expression, and was accepted", text)
		}
		whole, err := regexp.Compile("^(?:" + text + ")$")
		if err != nil {
			return // too large with the anchors
		}
		if got := policy.NewSet(c).Decide(app(web), secret.Read, secret.Path(name)).Allowed; got != whole.MatchString(name) {
			t.Fatalf("%q on %q: allowed %v", text, name, got)
		}
		shown := regexp.MustCompile(policy.ToWire(p.Path))
		if shown.MatchString(name) != whole.MatchString(name) {
			t.Fatalf("%q is shown as %q, which means something else on %q", text, shown, name)
		}
	})
}

package failpoint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// A step that is missing from All is one that no test would go through.
func TestAllListsEveryStep(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "failpoint.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[Name]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && spec.Type != nil {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared[Name(text)] = true
		}
		return true
	})
	listed := map[Name]bool{}
	for _, name := range All {
		if listed[name] || !declared[name] {
			t.Errorf("All lists %q, which is there twice or not declared", name)
		}
		listed[name] = true
	}
	if len(listed) != len(declared) {
		t.Errorf("All lists %d steps of %d", len(listed), len(declared))
	}
}

// DESIGN.md lists the same steps, and no others.
func TestDesignListsEveryStep(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[Name]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:seal|node|keeper)\\.[a-z.]+)` \\|").FindAllSubmatch(text, -1) {
		listed[Name(row[1])] = true
	}
	for _, name := range All {
		if !listed[name] {
			t.Errorf("DESIGN.md does not list %q", name)
		}
	}
	if len(listed) != len(All) {
		t.Errorf("DESIGN.md lists %d steps of %d", len(listed), len(All))
	}
}

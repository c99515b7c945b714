// Package reference keeps docs true. What docs/configuration.md says of fields and
// annotations is made of their comments, and its examples are read as the agent
// reads them; docs/operations.md has every event and every reason to idle.
package reference

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/qos"
)

var update = flag.Bool("update", false, "rewrite the generated parts of docs/configuration.md")

const root = "../.."

var (
	page   = filepath.Join(root, "docs", "configuration.md")
	region = regexp.MustCompile(`(?ms)^<!-- (fields|annotations|file)(?: (\S+))? -->\n.*?^<!-- end -->\n`)
)

// A part between two such comments is generated:
//
//	<!-- fields TYPE -->      the fields of a type of package config
//	<!-- annotations -->      the annotations of package qos
//	<!-- file PATH -->        a file of the repository
//	<!-- end -->
func TestConfigurationPage(t *testing.T) {
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	regions := 0
	now := region.ReplaceAllStringFunc(string(old), func(s string) string {
		regions++
		m := region.FindStringSubmatch(s)
		first, _, _ := strings.Cut(s, "\n")
		var body string
		switch m[1] {
		case "fields":
			body = fields(t, m[2])
		case "annotations":
			body = annotations(t)
		case "file":
			body = file(t, m[2])
		}
		return first + "\n" + body + "<!-- end -->\n"
	})
	if want := strings.Count(string(old), "<!-- end -->"); regions != want {
		t.Fatalf("%s has %d generated parts and %d ends", page, regions, want)
	}
	if *update {
		if err := os.WriteFile(page, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(now, string(old)); diff != "" {
		t.Errorf("%s is stale: run make update (-want +got):\n%s", page, diff)
	}
	// No struct of the configuration is left out.
	for _, name := range structs(reflect.TypeFor[config.MemoryQoSConfiguration]()) {
		if !strings.Contains(string(old), "<!-- fields "+name+" -->") {
			t.Errorf("%s does not describe %s", page, name)
		}
	}
}

// Each example is one that the agent takes.
func TestExamples(t *testing.T) {
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]int{}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(data), -1) {
		for doc := range strings.SplitSeq(block[1], "\n---\n") {
			if strings.Contains(doc, "kind: "+config.Kind) {
				read[config.Kind]++
				if _, err := config.Decode([]byte(doc)); err != nil {
					t.Errorf("%v in:\n%s", err, doc)
				}
				continue
			}
			asJSON, err := yaml.YAMLToJSONStrict([]byte(doc))
			if err != nil {
				t.Fatalf("%v in:\n%s", err, doc)
			}
			var pod corev1.Pod
			strict, err := kjson.UnmarshalStrict(asJSON, &pod)
			if err != nil || len(strict) > 0 || pod.Kind != "Pod" {
				t.Errorf("is no pod: %v %v:\n%s", err, strict, doc)
				continue
			}
			read["Pod"]++
			c, err := config.Load("")
			if err != nil {
				t.Fatal(err)
			}
			if _, errs := qos.NewPolicy(c, qos.Node{PageSize: 4096}).For(&pod); len(errs) > 0 {
				t.Errorf("%v in:\n%s", errs, doc)
			}
		}
	}
	if read[config.Kind] == 0 || read["Pod"] == 0 {
		t.Errorf("examples found: %v, want some of both kinds", read)
	}
}

// structs lists the structs of package config that t is made of, t first.
func structs(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return structs(t.Elem())
	case reflect.Struct:
		if t.PkgPath() != reflect.TypeFor[config.Rule]().PkgPath() {
			return nil
		}
		out := []string{t.Name()}
		for i := range t.NumField() {
			out = append(out, structs(t.Field(i).Type)...)
		}
		return out
	}
	return nil
}

func parse(t *testing.T, name string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// oneLine is a comment as a paragraph of Markdown.
func oneLine(comment *ast.CommentGroup) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(comment.Text()), " "), "<", "&lt;")
}

func fields(t *testing.T, typeName string) string {
	t.Helper()
	var b strings.Builder
	for _, decl := range parse(t, "config/types.go").Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		spec := g.Specs[0].(*ast.TypeSpec)
		if spec.Name.Name != typeName {
			continue
		}
		s, ok := spec.Type.(*ast.StructType)
		if !ok {
			t.Fatalf("%s is no struct", typeName)
		}
		fmt.Fprintf(&b, "%s\n\n", oneLine(g.Doc))
		for _, f := range s.Fields.List {
			if len(f.Names) == 0 {
				continue // inline: apiVersion and kind
			}
			name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
			if name == "" || f.Doc == nil {
				t.Fatalf("%s.%s has no name in JSON or no comment", typeName, f.Names[0].Name)
			}
			text := strings.TrimPrefix(oneLine(f.Doc), f.Names[0].Name+" ")
			fmt.Fprintf(&b, "- **`%s`** (%s) %s\n", name, kind(f.Type), text)
		}
	}
	if b.Len() == 0 {
		t.Fatalf("package config has no type %s", typeName)
	}
	return b.String()
}

// kind is a Go type as a writer of YAML thinks of it.
func kind(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return kind(e.X)
	case *ast.ArrayType:
		return "list of " + kind(e.Elt)
	case *ast.MapType:
		return "map of " + kind(e.Value)
	case *ast.SelectorExpr:
		switch name := e.Sel.Name; name {
		case "Duration":
			return "duration, such as `30s`"
		case "Quantity":
			return "quantity, such as `100Mi`"
		case "PodQOSClass":
			return "string"
		default:
			return name
		}
	case *ast.Ident:
		switch name := e.Name; name {
		case "float64", "int":
			return "number"
		case "Rule", "Match", "StallGuard", "Rails", "Logging":
			return "[" + name + "](#" + strings.ToLower(name) + ")"
		case "bool":
			return "boolean"
		}
		return "string" // and what is named of its values
	}
	return fmt.Sprintf("%T", e)
}

func annotations(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, decl := range parse(t, "qos/annotations.go").Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST || len(g.Specs) < 2 {
			continue
		}
		fmt.Fprintf(&b, "%s\n\n", oneLine(g.Doc))
		for _, s := range g.Specs {
			spec := s.(*ast.ValueSpec)
			sum := spec.Values[0].(*ast.BinaryExpr) // AnnotationPrefix + "..."
			name, err := strconv.Unquote(sum.Y.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.TrimPrefix(oneLine(spec.Doc), spec.Names[0].Name+" ")
			fmt.Fprintf(&b, "- **`%s%s`** %s\n", qos.AnnotationPrefix, name, text)
		}
	}
	if b.Len() == 0 {
		t.Fatal("package qos has no annotations")
	}
	return b.String()
}

func file(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return "```" + strings.TrimPrefix(filepath.Ext(strings.TrimSuffix(name, ".table")), ".") + "\n" + string(data) + "```\n"
}

package controllers

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"
)

// reviewer is an API server that knows the tokens "may" and "may-not".
type reviewer struct {
	tokens, accesses atomic.Int32
	down             atomic.Bool
}

func (r *reviewer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer := func(in any, decide func() any) {
		if r.down.Load() {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`))
			return
		}
		if err := json.NewDecoder(req.Body).Decode(in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(decide())
	}
	switch req.URL.Path {
	case "/apis/authentication.k8s.io/v1/tokenreviews":
		r.tokens.Add(1)
		var t authenticationv1.TokenReview
		answer(&t, func() any {
			if strings.HasPrefix(t.Spec.Token, "may") {
				t.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: t.Spec.Token, Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"x": {"y"}}}}
			}
			return &t
		})
	case "/apis/authorization.k8s.io/v1/subjectaccessreviews":
		r.accesses.Add(1)
		var s authorizationv1.SubjectAccessReview
		answer(&s, func() any {
			a := s.Spec.NonResourceAttributes
			s.Status.Allowed = a != nil && a.Path == "/metrics" && a.Verb == "get" && s.Spec.User == "may" && len(s.Spec.Groups) == 1 && len(s.Spec.Extra["x"]) == 1
			return &s
		})
	default:
		http.NotFound(w, req)
	}
}

// Who has no token, a wrong one, or one without the right, does not get in, and the API
// server is asked once for each token in its time.
func TestAccess(t *testing.T) {
	var r reviewer
	api := httptest.NewServer(&r)
	defer api.Close()
	filter, err := newAccess(&rest.Config{Host: api.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := filter(logr.Discard(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("memqos_x 1")) }))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, authorization string) int {
		req := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if got := strings.Contains(w.Body.String(), "memqos_x"); got != (w.Code == http.StatusOK) {
			t.Errorf("%s %s as %q: %d and metrics %v", method, path, authorization, w.Code, got)
		}
		return w.Code
	}
	for _, tt := range []struct {
		method, path, authorization string
		want                        int
		tokens, accesses            int32 // that the API server is asked for
	}{
		{http.MethodGet, "/metrics", "", http.StatusUnauthorized, 0, 0},
		{http.MethodGet, "/metrics", "Basic bWF5", http.StatusUnauthorized, 0, 0},
		{http.MethodGet, "/metrics", "Bearer ", http.StatusUnauthorized, 0, 0},
		{http.MethodPost, "/metrics", "Bearer may", http.StatusMethodNotAllowed, 0, 0},
		{http.MethodGet, "/metrics", "Bearer may", http.StatusOK, 1, 1},
		{http.MethodGet, "/metrics", "Bearer may", http.StatusOK, 0, 0},
		{http.MethodGet, "/other", "Bearer may", http.StatusForbidden, 1, 1},
		{http.MethodGet, "/metrics", "Bearer may-not", http.StatusForbidden, 1, 1},
		{http.MethodGet, "/metrics", "Bearer may-not", http.StatusForbidden, 0, 0},
		{http.MethodGet, "/metrics", "Bearer stranger", http.StatusUnauthorized, 1, 0},
		{http.MethodGet, "/metrics", "Bearer stranger", http.StatusUnauthorized, 0, 0},
	} {
		tokens, accesses := r.tokens.Load(), r.accesses.Load()
		if got := ask(tt.method, tt.path, tt.authorization); got != tt.want {
			t.Errorf("%s %s as %q: %d, want %d", tt.method, tt.path, tt.authorization, got, tt.want)
		}
		if a, b := r.tokens.Load()-tokens, r.accesses.Load()-accesses; a != tt.tokens || b != tt.accesses {
			t.Errorf("%s %s as %q: %d tokens and %d accesses are reviewed, want %d, %d", tt.method, tt.path, tt.authorization, a, b, tt.tokens, tt.accesses)
		}
	}
	// An API server that does not answer is not remembered as a refusal.
	r.down.Store(true)
	if got := ask(http.MethodGet, "/metrics", "Bearer may-later"); got != http.StatusServiceUnavailable {
		t.Errorf("without the API server: %d", got)
	}
	r.down.Store(false)
	if got := ask(http.MethodGet, "/metrics", "Bearer may-later"); got != http.StatusForbidden {
		t.Errorf("the API server is back: %d", got)
	}
}

// What is known of a token ends, and tokens of strangers take a bounded amount of memory.
func TestAccessForgets(t *testing.T) {
	var r reviewer
	api := httptest.NewServer(&r)
	defer api.Close()
	a, err := accessOf(&rest.Config{Host: api.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	a.now = func() time.Time { return now }
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
	req.Header.Set("Authorization", "Bearer may")
	for i, after := range []time.Duration{0, allowedFor - time.Second, 2 * time.Second, allowedFor - 3*time.Second, 3 * time.Second} {
		now = now.Add(after)
		if status, err := a.ask(req); status != http.StatusOK || err != nil {
			t.Fatalf("%d (%v)", status, err)
		}
		if got, want := r.tokens.Load(), []int32{1, 1, 2, 2, 3}[i]; got != want {
			t.Errorf("question %d: %d reviews, want %d", i, got, want)
		}
	}
	for i := range tokensKnown {
		a.known[[32]byte{byte(i), 1}] = review{}
	}
	req.Header.Set("Authorization", "Bearer stranger")
	if status, err := a.ask(req); status != http.StatusUnauthorized || err != nil {
		t.Errorf("%d (%v)", status, err)
	}
	if len(a.known) > tokensKnown {
		t.Errorf("%d tokens are remembered", len(a.known))
	}
	api.Close()
	now = now.Add(time.Hour)
	if status, err := a.ask(req); status != http.StatusServiceUnavailable || err == nil || errors.Is(err, errBusy) {
		t.Errorf("without an API server: %d (%v)", status, err)
	}
}

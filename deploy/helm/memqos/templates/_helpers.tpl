{{- define "memqos.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "memqos.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "memqos.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "memqos.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "memqos.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- define "memqos.selectorLabels" -}}
app.kubernetes.io/name: {{ include "memqos.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "memqos.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "memqos.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "memqos.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "memqos.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "memqos.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s/%s@%s" .registry .repository .digest }}
{{- else }}
{{- printf "%s/%s:%s" .registry .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The configuration file: what is set of .Values.config. */}}
{{- define "memqos.config" -}}
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
{{- range $field, $value := .Values.config }}
{{- if not (or (kindIs "invalid" $value) (and (kindIs "string" $value) (empty $value))) }}
{{ toYaml (dict $field $value) }}
{{- end }}
{{- end }}
{{- end }}

{{/*
What a running agent cannot change: config.ValidateUpdate, a test compares. The rest of
the configuration it reloads.
*/}}
{{- define "memqos.fixed" -}}
{{- pick .Values.config "featureGates" "cgroupRoot" "cgroupDriver" "bundlePaths" "stateDir" "restoreOnExit" "metricsBindAddress" "metricsSecure" "metricsCertDir" "pprofBindAddress" "healthzBindAddress" "statusBindAddress" "logging" | toYaml }}
{{- end }}

{{/* The port of host:port; empty where nothing is served. */}}
{{- define "memqos.port" -}}
{{- if and . (ne . "0") }}
{{- regexFind "[0-9]+$" . }}
{{- end }}
{{- end }}

{{/* The port of the status where it is on the pod's network; empty on the loopback. */}}
{{- define "memqos.statusPort" -}}
{{- if not (regexMatch "^(127\\.|localhost:|\\[::1\\])" (default "127.0.0.1:0" .)) }}
{{- include "memqos.port" . }}
{{- end }}
{{- end }}

{{/* Directories of OCI bundles by runtime, the same path in the pod as on the host. */}}
{{- define "memqos.bundles" -}}
containerd: /run/containerd/io.containerd.runtime.v2.task/k8s.io
k3s: /run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io
crio: /run/containers/storage/overlay-containers
{{- end }}

{{- define "memqos.securityContext" -}}
{{- $context := deepCopy .Values.securityContext }}
{{- if .Values.selinux.enabled }}
{{- $_ := set $context "seLinuxOptions" .Values.selinux.options }}
{{- end }}
{{- toYaml $context }}
{{- end }}

{{/* What the agent and the test have in common in where and as whom they run. */}}
{{- define "memqos.pod" -}}
serviceAccountName: {{ include "memqos.serviceAccountName" . }}
automountServiceAccountToken: true
enableServiceLinks: false
hostNetwork: false
hostPID: false
hostIPC: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "memqos.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if dig "limits" "memory" "" .Values.resources }}
- name: GOMEMLIMIT # the collector works harder before the kernel has to
  valueFrom:
    resourceFieldRef:
      containerName: memqos
      resource: limits.memory
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

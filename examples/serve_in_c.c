/* Continue a text with an export of `gpt2-tf export`, in C, without Python.

   The TensorFlow wheel has the headers and the libraries. From the root of this repository:

       TF=$(python -c 'import os, tensorflow; print(os.path.dirname(tensorflow.__file__))')
       gcc examples/serve_in_c.c -o serve_in_c -I"$TF/include" -L"$TF" -Wl,-rpath,"$TF" \
           -l:libtensorflow_cc.so.2 -l:libtensorflow_framework.so.2
       ./serve_in_c gpt2/1 "ROMEO:"

   The program calls the signature `serving_default`. gpt2_tf/serving/signatures.py has the names of all tensors. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tensorflow/c/c_api.h>
#include <tensorflow/c/tf_tstring.h>

static void check(const TF_Status* status, const char* action) {
  if (TF_GetCode(status) != TF_OK) {
    fprintf(stderr, "error: cannot %s: %s\n", action, TF_Message(status));
    exit(1);
  }
}

static TF_Output find_tensor(TF_Graph* graph, const char* operation, int index) {
  TF_Output tensor = {TF_GraphOperationByName(graph, operation), index};
  if (tensor.oper == NULL) {
    fprintf(stderr, "error: the export has no operation %s; see the names with saved_model_cli\n", operation);
    exit(1);
  }
  return tensor;
}

/* A string tensor of shape [1]: a batch of one row. */
static TF_Tensor* new_text(const char* text) {
  const int64_t shape[] = {1};
  TF_Tensor* tensor = TF_AllocateTensor(TF_STRING, shape, 1, sizeof(TF_TString));
  TF_TString* string = TF_TensorData(tensor);
  TF_StringInit(string);
  TF_StringCopy(string, text, strlen(text));
  return tensor;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s FOLDER TEXT, such as %s gpt2/1 \"ROMEO:\"\n", argv[0], argv[0]);
    return 2;
  }
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check(status, "load the export");

  TF_Output input = find_tensor(graph, "serving_default_text", 0);
  TF_Output output = find_tensor(graph, "StatefulPartitionedCall_5", 0);
  TF_Tensor* text = new_text(argv[2]);
  TF_Tensor* answer = NULL;
  TF_SessionRun(session, NULL, &input, &text, 1, &output, &answer, 1, NULL, 0, NULL, status);
  check(status, "continue the text");

  const TF_TString* string = TF_TensorData(answer);
  fwrite(TF_StringGetDataPointer(string), 1, TF_StringGetSize(string), stdout);
  putchar('\n');

  TF_StringDealloc(TF_TensorData(text));
  TF_DeleteTensor(text);
  TF_DeleteTensor(answer);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
